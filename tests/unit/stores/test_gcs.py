"""obstore's client of Google Cloud Storage, on an S3 server: both speak the same XML for reads and listings."""

import pytest

from inpaint_encode.stores import storage
from inpaint_encode.stores.base import Access


def test_reads_and_listings(public):
    access = Access(anonymous=True, endpoint_url=public.endpoint)
    prefix = public.uri("images").replace("s3://", "gs://")
    version = storage.read(f"{prefix}/a.png", access).version
    assert storage.read_range(f"{prefix}/a.png", 3, 5, access) == (b"image", version)
    (page,) = storage.list_objects(prefix, access)
    assert page[:3] == (["a.png"], [8], [version])
    with pytest.raises(FileNotFoundError):
        storage.read(f"{prefix}/none", access)
