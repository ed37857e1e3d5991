"""The benchmark's pairs: photographs as JPEG of quality 90, masks as gray PNG, on disk.

There are few distinct files, each hard-linked to many keys, so thousands of pairs are written in seconds. Every key is
opened and decoded. All files stay in the page cache, so disk speed is not measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from inpaint_encode.demo.pairs import MaskKind, Size, draw_mask, encode_image, random_picture

__all__ = [
    "MIXED",
    "MIXED_128",
    "SQUARE_64",
    "SQUARE_128",
    "SQUARE_512",
    "SQUARE_1024",
    "Pair",
    "PairSet",
    "pair_uris",
    "write_pairs",
]

_QUALITY = 90
_KINDS: tuple[MaskKind, ...] = ("strokes", "boxes", "soft")


class Pair(NamedTuple):
    """One image and its mask, by path or URI."""

    key: str
    image: str
    mask: str


@dataclass(frozen=True)
class PairSet:
    """Pairs whose images have these ``sizes``, in turn from key to key."""

    name: str
    sizes: tuple[Size, ...]

    @property
    def megapixels(self) -> float:
        """Mean of one image."""
        return sum(width * height for width, height in self.sizes) / len(self.sizes) / 1e6


SQUARE_64 = PairSet("64 x 64", ((64, 64),))
"""For runs over many keys, where the cost of a key matters and not that of its pixels."""
SQUARE_128 = PairSet("128 x 128", ((128, 128),))
"""A CPU encodes one in about a second."""
SQUARE_512 = PairSet("512 x 512", ((512, 512),))
SQUARE_1024 = PairSet("1024 x 1024", ((1024, 1024),))
MIXED_128 = PairSet("6 sizes around 128 x 128", ((128, 128), (104, 160), (160, 104), (96, 168), (176, 96), (136, 120)))
MIXED = PairSet("12 sizes", (
    (403, 605), (605, 403), (500, 375), (427, 640), (640, 427), (512, 683),
    (683, 512), (600, 800), (768, 576), (701, 701), (1000, 667), (1024, 768),
))  # fmt: skip


def write_pairs(folder: Path, chosen: PairSet, count: int, distinct: int = 96) -> list[Pair]:
    """Write ``count`` pairs, ``distinct`` of them different, into ``folder/images`` and ``folder/masks``.

    The folder must be new. Pair ``i`` is the same file as pair ``i % distinct``.
    """
    pairs = pair_uris(str(folder), count)
    for parent in {Path(path).parent for pair in pairs for path in (pair.image, pair.mask)}:
        parent.mkdir(parents=True)
    for index, pair in enumerate(pairs):
        if index < distinct:
            _write(pair, index, chosen.sizes[index % len(chosen.sizes)])
        else:
            Path(pair.image).hardlink_to(pairs[index % distinct].image)
            Path(pair.mask).hardlink_to(pairs[index % distinct].mask)
    return pairs


def pair_uris(prefix: str, count: int) -> list[Pair]:
    """Return the pairs that `write_pairs` writes, below a folder or below a prefix it was uploaded to."""
    keys = [f"{index // 1000:04}/{index:07}" for index in range(count)]
    return [Pair(key, f"{prefix}/images/{key}.jpg", f"{prefix}/masks/{key}.png") for key in keys]


def _write(pair: Pair, index: int, size: Size) -> None:
    rng = np.random.default_rng([index, *size])
    picture = random_picture(rng, size).convert("RGB")  # one photograph is gray, and would decode in a third
    Path(pair.image).write_bytes(encode_image(picture, pair.image, _QUALITY))
    Path(pair.mask).write_bytes(encode_image(draw_mask(rng, size, _KINDS[index % len(_KINDS)]), pair.mask))
