"""Damaged image files. Run as a script, it decodes them and prints the outcomes as JSON.

The script runs in its own process, because a decoder may crash and because its peak memory is measured.
"""

import json
import re
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from skimage import data as photographs

from inpaint_encode.core.decode import PairDecoder, decode_image, decode_mask
from inpaint_encode.core.geometry import Sizing
from inpaint_encode.errors import PairRejected
from tests.files import COLOUR, COLOUR_ALPHA, GREY, PALETTE, grey_profile, matrix_profile, png, saved, taller_png, tiff

PHOTO = np.ascontiguousarray(photographs.astronaut()[60:156, 180:260])
LEVELS = PHOTO[..., 1]
SIDES = (0, 1, 7, 4096, 7999, 8000, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**32 - 1)
"""False sides that `false_sizes` writes into headers."""


def sources() -> dict[str, bytes]:
    profile = matrix_profile(np.diag([0.9, 1.0, 0.8]), 2.2)
    return {
        "jpeg": saved(PHOTO, "JPEG", icc_profile=profile),
        "jpeg, progressive": saved(PHOTO, "JPEG", progressive=True),
        "jpeg, cmyk": saved(PHOTO, "JPEG", "CMYK"),
        "png": png(PHOTO, COLOUR),
        "png, packed": saved(PHOTO, "PNG", icc_profile=profile),
        "png, palette": png(LEVELS, PALETTE, PLTE=PHOTO.reshape(-1, 3)[:256], tRNS=LEVELS.reshape(-1)[:256]),
        "png, 16 bit": png(LEVELS.astype(np.uint16) * 257, GREY, 16),
        "png, alpha": png(np.dstack([PHOTO, LEVELS]), COLOUR_ALPHA),
        "png, 1 bit": png(LEVELS >> 7, GREY, 1),
        "webp": saved(PHOTO, "WEBP"),
        "webp, lossless": saved(np.dstack([PHOTO, LEVELS]), "WEBP", lossless=True),
        "gif": saved(LEVELS, "GIF"),
        "bmp": saved(PHOTO, "BMP"),
        "tiff": tiff(PHOTO, tile=(32, 32)),
        "tiff, lzw": saved(PHOTO, "TIFF", compression="tiff_lzw", icc_profile=grey_profile(2.2)),
        "tiff, jpeg": saved(PHOTO, "TIFF", compression="jpeg"),
        "avif": saved(PHOTO, "AVIF"),
    }


Mutation = Callable[[bytes, np.random.Generator], bytes]


def flipped(data: bytes, rng: np.random.Generator) -> bytes:
    damaged = bytearray(data)
    for at in rng.integers(0, len(data), rng.choice((1, 1, 8, 64))):
        damaged[at] ^= 1 << rng.integers(8)
    return bytes(damaged)


def flipped_in_the_header(data: bytes, rng: np.random.Generator) -> bytes:
    return flipped(data[:64], rng) + data[64:]


def cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: rng.integers(1, len(data))]


def cut_with_an_end(data: bytes, rng: np.random.Generator) -> bytes:
    return cut(data, rng) + data[-12:]


def without_a_stretch(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = sorted(rng.integers(0, len(data), 2))
    return data[:start] + data[end:]


def zeroed(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = sorted(rng.integers(0, len(data), 2))
    return data[:start] + bytes(end - start) + data[end:]


def false_sizes(data: bytes, rng: np.random.Generator) -> bytes:
    """Replace every 96 and 80 in the header, in both byte orders; the checksum of PNG's header is made right."""
    side, other = (int(value) for value in rng.choice(SIDES, 2))
    for width, order in ((2, "big"), (2, "little"), (4, "big"), (4, "little")):
        for true, false in ((96, side), (80, other)):
            was, becomes = true.to_bytes(width, order), (false % 256**width).to_bytes(width, order)
            data = data[:700].replace(was, becomes) + data[700:]
    if data[:4] == b"\x89PNG":
        data = data[:29] + zlib.crc32(data[12:29]).to_bytes(4, "big") + data[33:]
    return data


def taller(data: bytes, rng: np.random.Generator) -> bytes:
    """Declare more rows than the file has, and keep its data: it must be rejected or decode as before.

    AVIF is left as it is, because its decoder scales to the size in the container.
    """
    if data[4:8] == b"ftyp":
        return data
    height = int(rng.choice([97, 98, 104, 192, 193, 960]))
    if data[:4] == b"\x89PNG":
        return taller_png(data, height)
    for before, after in zip(_stated_heights(96), _stated_heights(height), strict=True):
        data = data.replace(before, after)
    return data


def _stated_heights(height: int) -> list[bytes]:
    """Return 80 columns and ``height`` rows as JPEG, GIF, lossy WebP, BMP, TIFF and lossless WebP encode them."""
    frames = [struct.pack(">HH", height, 80), struct.pack("<HH", 80, height), struct.pack("<II", 80, height)]
    tags = [struct.pack("<HHIHH", 257, 3, 1, height, 0), struct.pack("<HHII", 257, 4, 1, height)]
    return [*frames, *tags, struct.pack("<I", 79 | (height - 1) << 14 | 1 << 28)]


def another_signature(data: bytes, rng: np.random.Generator) -> bytes:
    """Replace the first bytes with another format's."""
    other = rng.choice([source[:32] for source in sources().values()])
    length = rng.choice((4, 12, 32))
    return bytes(other[:length]) + data[length:]


def no_image(data: bytes, rng: np.random.Generator) -> bytes:
    others = (
        b"",
        b"\0",
        data[:3],
        b"<!DOCTYPE html><title>404</title>",
        rng.bytes(999),
        data[::-1],
        b"<svg/>",
        b"%PDF-1",
    )
    return others[rng.integers(len(others))]


MUTATIONS: tuple[Mutation, ...] = (
    flipped,
    flipped_in_the_header,
    cut,
    cut_with_an_end,
    without_a_stretch,
    zeroed,
    false_sizes,
    taller,
    another_signature,
    no_image,
)


def mutated(count: int, seed: int = 0) -> Iterator[bytes]:
    """Yield ``count`` files, the same for the same seed."""
    return (data for data, _ in _mutated(count, seed))


def _mutated(count: int, seed: int = 0) -> Iterator[tuple[bytes, bytes | None]]:
    """Yield each file with the original that it must equal if it is decoded, or None."""
    files = list(sources().values())
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        mutation, original = MUTATIONS[index % len(MUTATIONS)], files[rng.integers(len(files))]
        yield mutation(original, rng), original if mutation is taller else None


def outcome(decoder: PairDecoder, data: bytes, *, as_mask: bool) -> str:
    try:
        if as_mask:
            decoder.mask(data, decoder.image(saved(PHOTO, "PNG")))
        else:
            pixels = decoder.image(data).pixels
            assert pixels.dtype == np.uint8 and pixels.shape[2] == 3 and not any(side % 8 for side in pixels.shape[:2])
    except PairRejected as rejection:
        return rejection.error
    return "decoded"


def same(data: bytes, original: bytes, *, as_mask: bool) -> bool:
    """Whether ``data`` decodes to the levels of the original."""
    decode = (lambda file: decode_mask(file, "luma")) if as_mask else decode_image
    return np.array_equal(decode(data).levels, decode(original).levels)


def peak_kb() -> int:
    """Peak memory of this process; ``getrusage`` would include the parent's peak at the fork."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def main(count: int) -> None:
    decoder = PairDecoder(sizing=Sizing(multiple=8))
    outcomes: dict[str, Counter[str]] = {"image": Counter(), "mask": Counter()}
    for data in sources().values():
        outcome(decoder, data, as_mask=False)
    before, seconds, whole = peak_kb(), [], Counter[str]()
    for data, original in _mutated(count):
        for role, counts in outcomes.items():
            begun = time.process_time()
            found = outcome(decoder, data, as_mask=role == "mask")
            counts[found] += 1
            seconds.append(time.process_time() - begun)
            if original is not None:
                decoded = found == "decoded"
                kept = decoded and same(data, original, as_mask=role == "mask")
                whole["same" if kept else "other" if decoded else "rejected"] += 1
    memory = {"before_mb": before // 1024, "peak_mb": peak_kb() // 1024}
    print(json.dumps({**outcomes, "whole": whole, **memory, "seconds": sum(seconds), "slowest_s": max(seconds)}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
