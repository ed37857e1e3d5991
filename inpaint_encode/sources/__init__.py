"""Finds the pairs of a source: prefixes that are listed, a manifest, Parquet files with images, or tars.

`open_source` returns a `PairSource`, which yields pairs in batches. `PairReader` reads their
images and masks.
"""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from inpaint_encode.settings import Source
from inpaint_encode.stores.base import DEFAULT_ACCESS, Access
from inpaint_encode.stores.ranged_file import Changed

from .manifest import PairList
from .pair_reader import PairReader, SourceFile, store_of
from .pairs import LeftOut, PairBatch, PairFiles, PairSource, Slice, check_access, find_pair_files
from .parquet import NullValue
from .prefixes import open_prefixes
from .tars import TarPairs

__all__ = [
    "Changed",
    "LeftOut",
    "NullValue",
    "PairBatch",
    "PairReader",
    "PairSource",
    "Slice",
    "SourceFile",
    "open_source",
    "store_of",
]

_FORMATS: dict[str, Callable[[Source, PairFiles, Access], PairSource]] = {
    "parquet": PairList,
    "csv": PairList,
    "jsonl": PairList,
    "tar": TarPairs,
}
"""The formats of ``--pairs``: the suffix of a file's name, and the class that reads such files.

To add a format:

1. Write its `PairSource` in a module of its own and add it here. A list of pairs only needs a reader in `list_files`.
2. Add the format to the help of ``--pairs`` in `inpaint_encode.settings.source`.
3. If ``--pairs`` may name a prefix with many of its files, add the suffix to ``_PREFIX_SUFFIXES`` in `pairs`.
4. If images are parts of its files, add their URIs to `part_uris`. Read whole images in `PairReader.read`, and their
   first bytes in `PairReader.read_start`.
"""


def open_source(source: Source, access: Access = DEFAULT_ACCESS) -> PairSource:
    """Find the files of the list or the tars, and open the first one; or open the prefixes.

    Raises:
        UsageError: a file or a prefix cannot be read, a column is missing, or an option of ``access`` has no effect.
    """
    if not source.pairs:
        check_access(access, pa.chunked_array([[source.images, source.masks]]))
        return open_prefixes(source, access)
    files = find_pair_files(source.pairs, access, _FORMATS)
    return _FORMATS[files.suffix](source, files, access)
