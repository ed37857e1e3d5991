"""Errors of obstore, botocore and s3fs are translated."""

import re

import pytest

from inpaint_encode.stores import storage
from inpaint_encode.stores.storage import Unavailable
from tests.buckets import bucket_prefix, in_threads, verbs
from tests.proxy import KINDS


class TestErrors:
    short_time_outs = True

    @pytest.mark.parametrize("kind", [*KINDS, "internal_error", "busy"])
    def test_errors_are_one_line_without_credentials(self, proxy, s3, quick_budget, kind):
        uri = f"{bucket_prefix(s3)}/x"
        storage.write(uri, b"x" * 1000)
        proxy.share, proxy.kinds, proxy.stall_s = 1.0, (kind,), 30.0
        calls = list(verbs(uri).values())
        for error in in_threads(lambda number: calls[number](), len(calls)):
            assert type(error) is Unavailable
            assert 10 < len(error.strerror) < 250 and "\n" not in error.strerror and "Debug" not in error.strerror
            assert not {*s3.environment.values()} & {*re.split(r"[\s\"'=&]+", error.strerror)}

    def test_an_expired_token_is_denied(self, proxy, s3):
        proxy.kinds, proxy.share = ("expired",), 1.0
        for call in verbs(s3.uri("x")).values():
            with pytest.raises(PermissionError, match="ExpiredToken"):
                call()
