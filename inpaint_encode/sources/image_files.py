"""Image files below a prefix, as Arrow tables, and what their users share: paths, URIs and errors."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from inpaint_encode.errors import UsageError
from inpaint_encode.stores.base import Access, Listed

from .pairs import IMAGE_SUFFIXES, MAX_EXAMPLES, LeftOut, list_pages

_IMAGE_NAME = rf"[^/]\.(?:{'|'.join(sorted(IMAGE_SUFFIXES))})$"
_PARSED_FILES = 8_192
"""Number of files that are parsed together. Pages of a few files are merged: each Arrow batch needs kilobytes."""

FILES = pa.schema([("key", pa.string()), ("suffix", pa.string()), ("version", pa.string()), ("size", pa.int64())])
"""A file whose name is ``key.suffix``, relative to its prefix."""
NAMES = ("key", "suffix")
"""The columns of `FILES` that are a file's name."""


def list_image_files(
    option: str, prefix: str, access: Access, left_out: LeftOut, nested: str = ""
) -> Iterator[pa.RecordBatch]:
    """Yield the image files below a prefix in `FILES`, in the store's order.

    Args:
        option: the option with the prefix, for errors.
        prefix: a normalized URI.
        access: how to read the store.
        left_out: counts the other files.
        nested: another prefix. If it is below ``prefix``, its files are neither yielded nor counted.

    Raises:
        UsageError: the prefix cannot be listed, or has no image file.
    """
    skip = nested.removeprefix(f"{prefix}/") + "/" if nested.startswith(f"{prefix}/") else ""
    found = ignored = 0
    for page in _merged(list_pages(option, prefix, access)):
        paths = pa.array(page.paths, pa.string())
        is_image = pc.match_substring_regex(paths, _IMAGE_NAME, ignore_case=True)
        wanted = pc.invert(pc.starts_with(paths, skip)) if skip else pc.true_unless_null(paths)
        columns = [paths, pa.array(page.versions, pa.string()), pa.array(page.sizes, pa.int64())]
        chosen = pa.RecordBatch.from_arrays(columns, ["path", "version", "size"]).filter(pc.and_(is_image, wanted))
        parts = pc.split_pattern(chosen["path"], ".", max_splits=1, reverse=True)
        names = [pc.list_element(parts, 0), pc.list_element(parts, 1)]
        files = pa.RecordBatch.from_arrays([*names, chosen["version"], chosen["size"]], schema=FILES)
        others = (pc.sum(pc.and_not(wanted, is_image)).as_py() or 0) + len(page.unreadable)
        found, ignored = found + files.num_rows, ignored + others
        left_out.ignored_files += others
        unreadable = left_out.unreadable_names
        unreadable += page.unreadable[: MAX_EXAMPLES - len(unreadable)]
        yield files
    if not found:
        raise UsageError(
            f"{option} {prefix} contains no image files (other files: {ignored:,}); the name of an image file ends "
            f"in {', '.join(sorted(IMAGE_SUFFIXES))}"
        )


def _merged(pages: Iterator[Listed]) -> Iterator[Listed]:
    """Merge pages until they have `_PARSED_FILES` files."""
    paths: list[str] = []
    sizes: list[int] = []
    versions: list[str] = []
    unreadable: list[str] = []
    for page in pages:
        paths += page.paths
        sizes += page.sizes
        versions += page.versions
        unreadable += page.unreadable
        if len(paths) + len(unreadable) >= _PARSED_FILES:
            yield Listed(paths, sizes, versions, tuple(unreadable))
            paths, sizes, versions, unreadable = [], [], [], []
    yield Listed(paths, sizes, versions, tuple(unreadable))


def paths_of(files: pa.Table) -> pa.ChunkedArray:
    """Return the files' paths, relative to their prefix."""
    return pc.binary_join_element_wise(files["key"], files["suffix"], ".")


def uris_of(prefix: str, stems: pa.ChunkedArray, suffixes: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return ``prefix/stem.suffix`` of each row."""
    return pc.binary_join_element_wise(pa.scalar(prefix), pc.binary_join_element_wise(stems, suffixes, "."), "/")


def add_examples(examples: list[str], prefix: str, files: pa.Table) -> None:
    """Append the first URIs in sorted order, up to `MAX_EXAMPLES` examples."""
    if files.num_rows and len(examples) < MAX_EXAMPLES:
        uris = uris_of(prefix, files["key"], files["suffix"]).combine_chunks().sort()
        examples += uris.slice(0, MAX_EXAMPLES - len(examples)).to_pylist()


class RepeatedKeys:
    """Counts the keys that several files of a prefix have, over all buckets."""

    def __init__(self, where: str, prefix: str) -> None:
        self._where, self._prefix = where, prefix
        self._count = 0
        self._first: tuple[str, list[str]] | None = None

    def add(self, files: pa.Table) -> None:
        """Count the repeated keys of a bucket."""
        if pc.count_distinct(files["key"]).as_py() == files.num_rows:
            return
        counts = files["key"].value_counts()
        repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
        key = pc.min(repeated).as_py()
        rivals = files.filter(pc.equal(files["key"], key))
        uris = sorted(uris_of(self._prefix, rivals["key"], rivals["suffix"]).to_pylist())
        self._count += len(repeated)
        self._first = min(self._first or (key, uris), (key, uris))

    def check(self) -> None:
        """Raise UsageError if there is such a key."""
        if self._first:
            key, uris = self._first
            cases = "1 such key" if self._count == 1 else f"{self._count:,} such keys"
            raise UsageError(
                f"{self._where}: {' and '.join(uris[:3])} have the same key, {key} ({cases}); a key is the path "
                "without the extension, so rename or move all files but one"
            )
