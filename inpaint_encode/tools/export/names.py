"""Files' names from rows' keys: a key is a path, and none leads out of its folder or to the files of another.

What cannot stand in a name is written as ``%`` and two hexadecimal digits, as in a URI. The key itself is in every
file that has room for it.
"""

from __future__ import annotations

import hashlib
import re

__all__ = ["path_of"]

_LONGEST = 200
"""Bytes of a name; disks take 255, with what is put behind it."""

_NOWHERE = re.compile(r'[%\\:*?"<>|\x00-\x1f\x7f]')
"""What some file system or store refuses in a name, and the sign that it is escaped by."""

_RESERVED = re.compile(r"^_(?=(?:export|original)$|tmp-)")
"""How names begin that are this package's own: its notes, the other latents, and unfinished files."""

_LIKE_A_FILE = re.compile(r"\.(?=(?:latent|png|safetensors|npy|json)$)")
"""A folder that ends so could have the name of a file of another key."""


def path_of(key: str, *, dots: bool = True) -> str:
    """Return the relative path of a key's files, without their suffixes; two keys never share one.

    Args:
        key: with slashes between folders; an empty part becomes ``%``, and ``.`` and ``..`` lose their dots.
        dots: whether the last part may have some; a WebDataset ends a sample's name at the first one.
    """
    *folders, name = key.split("/")
    last = _escaped(r"\.", _segment(name)) if not dots else _segment(name)
    return "/".join(_shortened(part) for part in [*(_escaped(_LIKE_A_FILE, _segment(one)) for one in folders), last])


def _segment(part: str) -> str:
    if part in ("", ".", ".."):
        return part.replace(".", "%2E") or "%"
    return _escaped(_RESERVED, _escaped(_NOWHERE, part))


def _escaped(pattern: re.Pattern[str] | str, part: str) -> str:
    return re.sub(pattern, lambda found: f"%{ord(found[0]):02X}", part)


def _shortened(part: str) -> str:
    """What is too long for a disk ends in a hash of all of it, behind two signs, which no name has otherwise."""
    if len(part.encode()) <= _LONGEST:
        return part
    kept = part.encode()[: _LONGEST - 18].decode(errors="ignore")
    return f"{kept}%%{hashlib.sha256(part.encode()).hexdigest()[:16]}"
