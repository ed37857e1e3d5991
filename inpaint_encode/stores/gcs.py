"""Google Cloud Storage: obstore finds the credentials in the environment."""

from __future__ import annotations

from functools import lru_cache

from obstore.store import GCSStore

from .base import Access
from .clients import obstore_options
from .redaction import check_credentials


@lru_cache
def connect(bucket: str, access: Access) -> GCSStore:
    """Return obstore's client of a bucket.

    Raises:
        PermissionError: a credential variable has a control character.
    """
    if not access.anonymous:
        check_credentials("GOOGLE_")
    server = {"base_url": access.endpoint_url} if access.endpoint_url else {}
    return GCSStore(bucket, skip_signature=access.anonymous, **obstore_options(access.endpoint_url), **server)
