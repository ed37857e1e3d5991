"""URIs of what is no object of its own: a row of a Parquet file, a member of a tar, a mask that is drawn.

A reader of the rows sees where each came from, and whoever holds a row can fetch its image again by the URI alone:

* ``s3://bucket/train-00000.parquet#row=12&column=image``: rows count from 0 through the whole file;
* ``s3://bucket/train-00000.tar#member=a/042.jpg&offset=1536&size=20480``: in bytes, of the member's data;
* ``random:brush?seed=0&index=3``: drawn by `inpaint_encode.sources.random_mask`, with the row's key.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["DRAWN_URI", "Member", "Row", "member", "parsed", "rows", "stem"]

_ROW = re.compile(r"^(?P<file>.+\.parquet)#row=(?P<row>\d+)&column=(?P<column>.+)$", re.DOTALL)
_MEMBER = re.compile(r"^(?P<file>.+?\.tar)#member=.+&offset=(?P<offset>\d+)&size=(?P<size>\d+)$", re.DOTALL)
_ROW_END = r"(?s)\.parquet#row=(\d+)&column=.+$"
DRAWN_URI = re.compile(r"^random:(?P<style>[a-z]+)\?seed=(?P<seed>\d+)&index=(?P<index>\d+)$")


class Row(NamedTuple):
    """A value of a column of images."""

    file: str
    row: int
    column: str


class Member(NamedTuple):
    """The data of a file in a tar."""

    file: str
    offset: int
    size: int


def parsed(uri: str) -> Row | Member | None:
    """Return what is inside of which file; None for an object of its own."""
    if found := _ROW.match(uri):
        return Row(found["file"], int(found["row"]), found["column"])
    if found := _MEMBER.match(uri):
        return Member(found["file"], int(found["offset"]), int(found["size"]))
    return None


def rows(file: str, numbers: pa.Array, column: str) -> pa.Array:
    """URIs of the rows of those numbers."""
    return pc.binary_join_element_wise(f"{file}#row=", numbers.cast(pa.string()), f"&column={column}", "")


def member(file: str, name: str, offset: int, size: int) -> str:
    """URI of a member of a tar, whose data are ``size`` bytes from ``offset`` on."""
    return f"{file}#member={name}&offset={offset}&size={size}"


def stem(uris: pa.ChunkedArray) -> pa.ChunkedArray:
    """Of URIs of rows ``file/row``, without the file's suffix; of others all before their suffix."""
    stems = pc.replace_substring_regex(uris, r"([^/])\.[^./]+$", r"\1")
    is_row = pc.match_substring_regex(uris, _ROW_END)
    if not pc.any(is_row).as_py():
        return stems
    return pc.if_else(is_row, pc.replace_substring_regex(uris, _ROW_END, r"/\1"), stems)
