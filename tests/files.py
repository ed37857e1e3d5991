"""Image and mask files of every kind, made of known levels: PNG written here byte by byte, the others by encoders."""

import io
import struct
import zlib

import numpy as np
import tifffile
from PIL import Image

GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6
"""PNG's color types."""
ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
"""First row, first column and steps of each pass."""


def saved(levels: np.ndarray, kind: str, mode: str | None = None, **options) -> bytes:
    """``levels`` of shape ``[H, W]`` or ``[H, W, channels]`` as a file, by Pillow."""
    image = Image.fromarray(levels)
    out = io.BytesIO()
    (image.convert(mode) if mode else image).save(out, kind, **options)
    return out.getvalue()


def tiff(levels: np.ndarray, **options) -> bytes:
    """By tifffile, which shares nothing with Pillow."""
    out = io.BytesIO()
    tifffile.imwrite(out, levels, metadata=None, **options)
    return out.getvalue()


def png(
    values: np.ndarray,
    colour: int,
    depth: int = 8,
    *before_data: bytes,
    interlaced: bool = False,
    **palette: np.ndarray,
) -> bytes:
    """A PNG of ``values`` ``[H, W]`` or ``[H, W, channels]``, each of ``depth`` bits, unfiltered.

    Args:
        values: whole numbers.
        colour: PNG's color type.
        depth: 1, 2, 4, 8 or 16.
        before_data: more chunks.
        interlaced: by Adam7.
        palette: ``PLTE`` and, if wanted, ``tRNS``, uint8.
    """
    height, width = values.shape[:2]
    passes = [values[top::down, left::right] for top, left, down, right in ADAM7] if interlaced else [values]
    data = zlib.compress(b"".join(_png_rows(part, depth) for part in passes if part.size))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    chunks = [png_chunk(b"IHDR", header), *before_data]
    chunks += [png_chunk(name.encode(), entries.tobytes()) for name, entries in palette.items()]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*chunks, png_chunk(b"IDAT", data), png_chunk(b"IEND", b"")])


def _png_rows(values: np.ndarray, depth: int) -> bytes:
    flat = values.reshape(len(values), -1)
    bits = (flat[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    rows = np.packbits(bits.reshape(len(values), -1).astype(np.uint8), axis=1)
    return b"".join(b"\0" + row.tobytes() for row in rows)


def taller_png(data: bytes, height: int) -> bytes:
    """The same file whose header says another height, by a checksum that is right."""
    data = data[:20] + struct.pack(">I", height) + data[24:]
    return data[:29] + struct.pack(">I", zlib.crc32(data[12:29])) + data[33:]


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def matrix_profile(primaries: np.ndarray, gamma: float) -> bytes:
    """An ICC profile of RGB: columns of ``primaries`` are red's, green's and blue's XYZ under D50."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    tags = {name: _xyz(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries.T, strict=True)}
    return _profile(b"RGB ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


def grey_profile(gamma: float) -> bytes:
    """An ICC profile of gray."""
    return _profile(b"GRAY", {b"kTRC": b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)})


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))


def _profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    white = np.array([0.9642, 1.0, 0.8249])
    text = b"made by a test\0"
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(79),
        b"wtpt": _xyz(white),
        **tags,
    }
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = bytearray(128)
    head[:4] = struct.pack(">I", 128 + len(table) + len(body))
    head[8:12], head[12:24], head[36:40] = b"\x02\x10\0\0", b"mntr" + space + b"XYZ ", b"acsp"
    head[68:80] = _xyz(white)[8:]
    return bytes(head) + table + body
