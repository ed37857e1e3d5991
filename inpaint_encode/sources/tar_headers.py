"""Reads the headers of a tar: old, ustar, GNU and pax. Each size is checked before it is used.

The standard library's tarfile reads extended headers of any size into memory, some of them in quadratic time, and
follows sizes that point backward. Here positions only grow, and the headers of one member have a limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, NamedTuple

BLOCK_BYTES = 512
MAX_HEADER_BYTES = 2**20
"""Limit for the long names and the pax records of one member."""
MAX_HEADERS = 16
"""Limit for the headers of one member."""
MAX_ZERO_BYTES = 2**24
"""Limit for the zeros between the end of a tar and the next tar or the end of the file."""

_FILES = (b"\0", b"0", b"7")
"""Types of regular files."""
_LINK, _FOLDER, _SPARSE = b"1", b"5", b"S"
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
"""Types of links, devices, folders and pipes."""
_LONG_NAME, _LONG_LINK, _GLOBAL = b"L", b"K", b"g"
_EXTENSIONS = (_LONG_NAME, _LONG_LINK, b"x", b"X", _GLOBAL)
"""Types of headers that extend the next one."""


class DamagedTar(Exception):
    """A tar cannot be read; the message names the byte."""


class Member(NamedTuple):
    """A member of a tar; names are bytes, usually of UTF-8."""

    name: bytes
    offset: int
    size: int
    """Position and size of the data in bytes."""
    is_file: bool
    """Whether this is a regular file that is not sparse."""
    is_folder: bool
    target: bytes | None = None
    """The name of a hard link's file; None for other members."""


def read_members(file: IO[bytes], size: int) -> Iterator[Member]:
    """Yield the members of a tar, and those of tars that are appended to it.

    Args:
        file: seekable; the caller may seek between two members.
        size: of the file in bytes.

    Raises:
        DamagedTar: the tar is damaged, or is not complete.
        OSError: the file cannot be read.
    """
    if size % BLOCK_BYTES or not size:
        raise DamagedTar(f"its size of {size:,} bytes is not a multiple of {BLOCK_BYTES}" if size else "it is empty")
    at, headers, header_bytes, extended = 0, 0, 0, dict[str, bytes]()
    while True:
        file.seek(at)
        block = file.read(BLOCK_BYTES)
        if not block:
            raise DamagedTar(f"it ends at byte {at:,} without the block of zeros that ends a tar")
        if not any(block) and not headers and at:
            if (at := _end_of_zeros(file, at + BLOCK_BYTES)) == size:
                return
            continue
        kind, data = block[156:157], at + BLOCK_BYTES
        length = _number(block[124:136]) if _has_checksum(block) else -1
        if length < 0:
            raise DamagedTar(f"the header at byte {at:,} is damaged")
        if kind not in _EXTENSIONS:
            member, end = _to_member(file, block, data, length, extended)
            if max(member.offset + member.size, end) > size:
                raise DamagedTar(f"the member at byte {at:,} ends after the end of the file")
            yield member
            at, headers, header_bytes, extended = end, 0, 0, {}
            continue
        headers, header_bytes = headers + 1, header_bytes + length
        if headers > MAX_HEADERS or header_bytes > MAX_HEADER_BYTES:
            raise DamagedTar(f"the header at byte {at:,} has more than {MAX_HEADER_BYTES:,} bytes of names and records")
        if len(text := file.read(length)) < length:
            raise DamagedTar(f"the header at byte {at:,} ends after the end of the file")
        if kind in (_LONG_NAME, _LONG_LINK):
            extended.setdefault("path" if kind == _LONG_NAME else "linkpath", _string(text))
        elif kind != _GLOBAL:  # the first header of a kind is the one that counts
            extended = _pax_records(text, at) | extended
        at = data + _padded(length)


def _to_member(file: IO[bytes], block: bytes, data: int, length: int, extended: dict[str, bytes]) -> tuple[Member, int]:
    """Return the member of a header, and the position of the next header."""
    kind, name, prefix = block[156:157], _string(block[:100]), _string(block[345:500])
    if prefix and kind not in (_SPARSE,):
        name = prefix + b"/" + name
    is_folder = kind == _FOLDER or (kind == b"\0" and name.endswith(b"/"))
    if "size" in extended:
        length = int(extended["size"]) if extended["size"].isdigit() and len(extended["size"]) < 20 else 2**64
    is_sparse = kind == _SPARSE or any(key.startswith("GNU.sparse.") for key in extended)
    more = kind == _SPARSE and block[482]
    while more:  # the map of an old sparse file goes on in blocks before the data
        if len(block := file.read(BLOCK_BYTES)) < BLOCK_BYTES:
            raise DamagedTar(f"the map of the sparse file before byte {data:,} is not complete")
        data, more = data + BLOCK_BYTES, block[504]
    if is_folder or kind in _WITHOUT_DATA:
        length = 0
    target = extended.get("linkpath", _string(block[157:257])) if kind == _LINK else None
    name = extended.get("path", name).rstrip(b"/") if is_folder else extended.get("path", name)
    is_file = kind in _FILES and not is_folder and not is_sparse
    return Member(name, data, length, is_file, is_folder, target), data + _padded(length)


def _end_of_zeros(file: IO[bytes], at: int) -> int:
    """Return the position of the next block that is not zero, or of the end of the file."""
    start = at
    while (block := file.read(BLOCK_BYTES)) and not any(block):
        at += len(block)
        if at - start > MAX_ZERO_BYTES:
            raise DamagedTar(f"it has more than {MAX_ZERO_BYTES:,} bytes of zeros at byte {start:,}")
    return at


def _pax_records(text: bytes, at: int) -> dict[str, bytes]:
    """Return the records of a pax header: each is ``length key=value`` and the end of a line."""
    records: dict[str, bytes] = {}
    start = 0
    while start < len(text) and text[start]:
        digits = text[start : start + 20].partition(b" ")[0]
        end = start + int(digits) if digits.isdigit() else start
        key, equals, value = text[start + len(digits) + 1 : max(start, end - 1)].partition(b"=")
        if not equals or end > len(text) or text[end - 1 : end] != b"\n":
            raise DamagedTar(f"the pax header at byte {at:,} is damaged")
        if len(key) <= 100:
            records[key.decode("latin-1")] = value
        start = end
    return records


def _has_checksum(block: bytes) -> bool:
    total = 256 + sum(block[:148]) + sum(block[156:])
    signed = total - 256 * sum(one > 127 for one in block[:148] + block[156:]) if not block.isascii() else total
    return _number(block[148:156]) in (total, signed)


def _number(digits: bytes) -> int:
    """Return an octal or a binary number; -1 if it is negative or damaged."""
    if digits[0] == 0x80:
        return int.from_bytes(digits[1:], "big")
    try:
        number = int(_string(digits).strip() or b"0", 8)
    except ValueError:
        return -1
    return max(number, -1)


def _string(text: bytes) -> bytes:
    return text.partition(b"\0")[0]


def _padded(size: int) -> int:
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES
