"""Fixtures of the output's tests."""

from collections.abc import Iterator

import pytest

from inpaint_encode.stores.s3 import forget_clients
from tests.proxy import FaultyProxy


@pytest.fixture
def proxy(s3, monkeypatch) -> Iterator[FaultyProxy]:
    """A faulty proxy for every S3 request of this process."""
    with FaultyProxy(s3) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.environment["AWS_ENDPOINT_URL"])
        forget_clients()
        yield running
    forget_clients()
