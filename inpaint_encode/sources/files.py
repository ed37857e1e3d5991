"""What ``--pairs`` names: one file, or all files of a kind below a prefix."""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

from inpaint_encode.errors import UsageError
from inpaint_encode.stores.access import Access

from .found import listed_pages, normalised

__all__ = ["PairFiles", "named_by"]

_ALONE = ("parquet", "csv", "jsonl", "tar")
_BELOW = ("parquet", "tar")
_PACKED = re.compile(r"\.(?:tar\.\w+|tgz|tbz2?|txz)$")


class PairFiles(NamedTuple):
    """Files of one kind, sorted by name."""

    kind: str
    """Their suffix: ``parquet``, ``csv``, ``jsonl`` or ``tar``."""
    folder: str
    """What their relative URIs, and their own names in keys, begin below."""
    uris: list[str]
    listed: int
    """Objects that were listed to find them."""


def named_by(pairs: str, access: Access) -> PairFiles:
    """Return the file, or list the prefix; names that begin with ``_`` or a dot are somebody's notes.

    Raises:
        UsageError: there is no such file or prefix, or it holds nothing of a known kind, or two kinds.
    """
    uri = normalised("--pairs", pairs)
    _refuse_packed(uri, uri)
    kind = uri.rpartition(".")[2]
    if kind in _ALONE:
        return PairFiles(kind, uri.rpartition("/")[0], [uri], 0)
    advice = f"check the spelling; one file must end in {', '.join(f'.{suffix}' for suffix in _ALONE)}"
    paths = [path for page in listed_pages("--pairs", uri, access, advice) for path in page.paths]
    files = sorted(path for path in paths if path.rpartition("/")[2][0] not in "_.")
    kinds = Counter(path.rpartition(".")[2] for path in files)
    there = [kind for kind in _BELOW if kinds[kind]]
    if len(there) > 1:
        raise UsageError(f"--pairs {uri} holds both .parquet and .tar files; name a prefix of one kind")
    if not there:
        _refuse_packed(uri, *files)
        raise UsageError(
            f"--pairs {uri} is neither a .parquet, .csv, .jsonl or .tar file nor a prefix with .parquet or .tar files "
            "below it"
        )
    chosen = [f"{uri}/{path}" for path in files if path.endswith(f".{there[0]}")]
    return PairFiles(there[0], uri, chosen, len(paths))


def _refuse_packed(uri: str, *files: str) -> None:
    if packed := [file for file in files if _PACKED.search(file)]:
        raise UsageError(
            f"--pairs {uri}: {packed[0]} is compressed as a whole, so that no member can be read without all that is "
            "before it; unpack the compression, so that it is a .tar"
        )
