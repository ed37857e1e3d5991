"""How a store is accessed: at which server, and with which credentials."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DEFAULT_ACCESS", "Access"]


@dataclass(frozen=True)
class Access:
    """Overrides of the environment's settings for s3:// and gs://; disks and HTTP servers ignore them."""

    anonymous: bool = False
    """Send requests without credentials."""
    requester_pays: bool = False
    """Accept that S3 charges the requests to the caller."""
    endpoint_url: str = ""
    """Server, as http://host:port or https://host; empty: the environment's ``AWS_ENDPOINT_URL``, or the provider's."""


DEFAULT_ACCESS = Access()
"""Everything from the environment. Outputs are always accessed this way."""
