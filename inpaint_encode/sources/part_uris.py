"""URIs of images that are part of a file: a row of a Parquet file, or a member of a tar.

Rows of the output keep these URIs. Each image can be fetched again by its URI alone:

* ``s3://bucket/train-00000.parquet#row=12&column=image``: row numbers start at 0 and run through the whole file;
* ``s3://bucket/train-00000.tar#member=a/042.jpg&offset=1536&size=20480``: position and size of the data in bytes.

`random_masks` has the URIs of random masks.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_ROW = re.compile(r"^(?P<file>.+\.parquet)#row=(?P<row>\d+)&column=(?P<column>.+)$", re.DOTALL)
_MEMBER = re.compile(
    r"^(?P<file>(?>.+?\.tar(?=#member=)))#member=.+&offset=(?P<offset>\d+)&size=(?P<size>\d+)$", re.DOTALL
)
_ROW_END = r"(?s)\.parquet#row=(\d+)&column=.+$"


class ParquetRow(NamedTuple):
    """One value of a Parquet column."""

    file: str
    row: int
    column: str


class TarMember(NamedTuple):
    """The data of one member of a tar; ``offset`` and ``size`` in bytes."""

    file: str
    offset: int
    size: int


def parse_part(uri: str) -> ParquetRow | TarMember | None:
    """Return the row or the member that ``uri`` names; None for a whole object."""
    if found := _ROW.match(uri):
        return ParquetRow(found["file"], int(found["row"]), found["column"])
    if found := _MEMBER.match(uri):
        return TarMember(found["file"], int(found["offset"]), int(found["size"]))
    return None


def row_uris(file: str, rows: pa.Array, column: str) -> pa.Array:
    """Return the URIs of the rows with these numbers."""
    return pc.binary_join_element_wise(f"{file}#row=", rows.cast(pa.string()), f"&column={column}", "")


def member_uris(file: str, names: pa.Array, offsets: NDArray[np.int64], sizes: NDArray[np.int64]) -> pa.Array:
    """Return the URIs of tar members whose data start at these bytes."""
    starts, lengths = (pa.array(numbers).cast(pa.string()) for numbers in (offsets, sizes))
    return pc.binary_join_element_wise(f"{file}#member=", names, "&offset=", starts, "&size=", lengths, "")


def without_suffix(uris: pa.ChunkedArray) -> pa.ChunkedArray:
    """Remove the file name suffix of each URI; ``file.parquet#row=12&column=image`` becomes ``file/12``."""
    stems = pc.replace_substring_regex(uris, r"([^/])\.[^./]+$", r"\1")
    is_row = pc.match_substring_regex(uris, _ROW_END)
    if not pc.any(is_row).as_py():
        return stems
    return pc.if_else(is_row, pc.replace_substring_regex(uris, _ROW_END, r"/\1"), stems)
