"""What is printed and put into pages, without the credentials that URIs may carry."""

from __future__ import annotations

import re

__all__ = ["redacted"]

_QUERY = re.compile(r"((?:https?://|\burl: /)[^\s?#]*)\?\S*", re.IGNORECASE)
"""Of a URI, or of its path alone, as urllib3 names it."""
_LOGIN = re.compile(r"(?<=://)[^\s/?#]+@")


def redacted(text: str) -> str:
    """Return ``text`` with neither logins nor queries in its URIs: a query may be a signature, which opens the object.

    Queries of ``http(s)://`` alone: elsewhere a ``?`` is a part of a name.
    """
    return _LOGIN.sub("…@", _QUERY.sub(r"\1?…", text))
