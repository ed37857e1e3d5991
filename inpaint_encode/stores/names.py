"""Names of files that were read from storage. A stranger may have written them.

A name is a relative path. It comes from a note, a footer or a listing of an output or an export, and becomes a path on
a disk or a key in a bucket, to write, to delete, or to read one of the product's own files. Paths of sources are no
names: the user gives them, a list may use ``../``, and nothing is written or deleted there.
"""

from __future__ import annotations

import re

MAX_BYTES = 4096
"""Longest name in bytes; systems allow no longer path."""

_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\]|^[A-Za-z]:")
"""Control characters, backslashes, which separate folders on other systems, and drive letters."""


def validate_name(name: str, pattern: re.Pattern[str] | None = None) -> str:
    """Return a name that stays below its folder.

    Args:
        name: relative path with slashes.
        pattern: of the names that the format has; by default any.

    Raises:
        ValueError: the name is absolute, has an empty part, ``.`` or ``..``, characters that no name has, or does not
            match the pattern.
    """
    is_safe = not _FORBIDDEN.search(name) and all(part not in ("", ".", "..") for part in name.split("/"))
    try:
        is_safe = is_safe and len(name.encode()) <= MAX_BYTES
    except UnicodeEncodeError:
        is_safe = False
    if not is_safe:
        raise ValueError(f"{ascii(name)[:100]} is no relative path of a file below its folder")
    if pattern and not pattern.fullmatch(name):
        raise ValueError(f"{ascii(name)[:100]} is no name of this format")
    return name
