"""Removes credentials from URIs before they are printed or put into pages."""

from __future__ import annotations

import re

_QUERY = re.compile(r"((?:https?://|\burl: /)[^\s?#]*)\?\S*", re.IGNORECASE)
"""The query of a URI, or of a path as urllib3's errors print it."""
_LOGIN = re.compile(r"(?<=://)[^\s/?#]+@")


def redacted(text: str) -> str:
    """Return ``text`` without logins and query strings in its URIs: a query may be a signature that grants access.

    Only ``http(s)://`` URIs have queries; elsewhere a ``?`` is part of a name.
    """
    return _LOGIN.sub("…@", _QUERY.sub(r"\1?…", text))
