"""File names from rows' keys: a key is a path that stays in its folder and never shares a file with another key.

Characters that a file name cannot contain are written as ``%`` and two hexadecimal digits, as in a URI. Every file
whose format has metadata contains the key itself.
"""

from __future__ import annotations

import hashlib
import re

__all__ = ["key_to_path"]

_MAX_BYTES = 200
"""Bytes of a name without its suffix; file systems allow 255."""

_FORBIDDEN = re.compile(r'[%\\:*?"<>|\x00-\x1f\x7f]')
"""Characters that a file system or store refuses in a name, and the escape sign itself."""

_RESERVED = re.compile(r"^_(?=(?:export|original)$|tmp-)")
"""Start of this package's own names: notes, original latents, temporary files."""

_FILE_SUFFIX = re.compile(r"\.(?=(?:latent|png|safetensors|npy|json)$)")
"""A folder with such a suffix could have the name of another key's file."""


def key_to_path(key: str, *, dots: bool = True) -> str:
    """Return the relative path of a key's files, without suffix; two keys never have the same path.

    Args:
        key: slashes separate folders; an empty part becomes ``%``, and ``.`` and ``..`` are escaped.
        dots: whether the last part may have dots; in a WebDataset the first dot ends a sample's name.
    """
    *folders, name = (_escape_part(part) for part in key.split("/"))
    folders = [_escape(_FILE_SUFFIX, folder) for folder in folders]
    return "/".join(_shorten(part) for part in [*folders, name if dots else _escape(r"\.", name)])


def _escape_part(part: str) -> str:
    if part in ("", ".", ".."):
        return part.replace(".", "%2E") or "%"
    return _escape(_RESERVED, _escape(_FORBIDDEN, part))


def _escape(pattern: re.Pattern[str] | str, part: str) -> str:
    return re.sub(pattern, lambda found: f"%{ord(found[0]):02X}", part)


def _shorten(part: str) -> str:
    """Replace the end of a long name by a hash after ``%%``, which no escaped name contains."""
    if len(part.encode()) <= _MAX_BYTES:
        return part
    kept = part.encode()[: _MAX_BYTES - 18].decode(errors="ignore")
    return f"{kept}%%{hashlib.sha256(part.encode()).hexdigest()[:16]}"
