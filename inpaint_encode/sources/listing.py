"""Lists the objects below a prefix, and finds the files that ``--pairs`` names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from inpaint_encode.errors import UsageError
from inpaint_encode.stores import storage
from inpaint_encode.stores.access import Access

_PREFIX_SUFFIXES = ("parquet", "tar")
"""Formats of which ``--pairs`` may name a prefix with many files."""
_COMPRESSED_TAR = re.compile(r"\.(?:tar\.\w+|tgz|tbz2?|txz)$")


class PairFiles(NamedTuple):
    """The files that ``--pairs`` names: all have one suffix, and are sorted by name."""

    suffix: str
    """``parquet``, ``csv``, ``jsonl`` or ``tar``."""
    folder: str
    """Relative URIs in the files are relative to this folder, and so are the files' names in keys."""
    uris: list[str]
    objects_listed: int
    """Number of objects that were listed to find the files; 0 if ``--pairs`` names one file."""


def find_pair_files(pairs: str, access: Access, suffixes: Collection[str]) -> PairFiles:
    """Return the one file that ``pairs`` names, or list the prefix. Names that begin with ``_`` or a dot are skipped.

    Args:
        pairs: value of ``--pairs``.
        access: how to read the store.
        suffixes: of all formats that can be read.

    Raises:
        UsageError: the prefix does not exist, or has no file of a known format, or has files of two formats.
    """
    uri = normalize_uri("--pairs", pairs)
    _check_not_compressed(uri, uri)
    suffix = uri.rpartition(".")[2]
    if suffix in suffixes:
        return PairFiles(suffix, uri.rpartition("/")[0], [uri], 0)
    advice = f"check the spelling; the name of a file must end in {', '.join(f'.{name}' for name in suffixes)}"
    paths = [path for page in list_pages("--pairs", uri, access, advice) for path in page.paths]
    files = sorted(path for path in paths if path.rpartition("/")[2][0] not in "_.")
    counts = Counter(path.rpartition(".")[2] for path in files)
    there = [name for name in _PREFIX_SUFFIXES if counts[name]]
    if len(there) > 1:
        raise UsageError(f"--pairs {uri} has both .parquet and .tar files; name a prefix with files of one format")
    if not there:
        _check_not_compressed(uri, *files)
        raise UsageError(
            f"--pairs {uri} has no .parquet and no .tar files; name a prefix with files of one of these formats, or "
            f"one file that ends in {', '.join(f'.{name}' for name in suffixes)}"
        )
    chosen = [f"{uri}/{path}" for path in files if path.endswith(f".{there[0]}")]
    return PairFiles(there[0], uri, chosen, len(paths))


def _check_not_compressed(uri: str, *files: str) -> None:
    if compressed := [file for file in files if _COMPRESSED_TAR.search(file)]:
        raise UsageError(
            f"--pairs {uri}: {compressed[0]} is a compressed tar, whose members cannot be read one by one; decompress "
            "it to a .tar file"
        )


def normalize_uri(option: str, uri: str) -> str:
    """Return `storage.normalize_uri` of an option's value; raise UsageError if the URI is not valid."""
    try:
        return storage.normalize_uri(uri, storage.READABLE)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


def list_pages(
    option: str, prefix: str, access: Access, advice: str = "check the spelling"
) -> Iterator[storage.Listed]:
    """Yield the pages of `storage.list_objects`.

    Raises:
        UsageError: the prefix cannot be listed, or no object is below it. ``option`` and ``advice`` are for the error.
    """
    if prefix.startswith("http"):
        raise UsageError(f"{option} {prefix}: HTTP servers cannot be listed; give a list of pairs with --pairs")
    empty = True
    try:
        for page in storage.list_objects(prefix, access):
            empty = empty and not page.paths and not page.unreadable
            yield page
    except OSError as error:
        raise UsageError(
            f"{option} {prefix} cannot be listed: {error.strerror or error}; check the prefix and the credentials with "
            f"`inpaint-encode doctor {prefix}`"
        ) from error
    if empty:
        if "://" in prefix:
            reason = "the bucket exists, but nothing in it starts with this prefix"
        elif Path(prefix).is_dir():
            reason = "the folder is empty"
        else:
            reason = "this is a file, not a folder" if Path(prefix).exists() else "there is no such folder"
        raise UsageError(f"{option} {prefix}: {reason}; {advice}")
