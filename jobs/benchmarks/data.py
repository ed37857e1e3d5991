"""The pairs that the benchmark runs on: photographs as JPEG of quality 90, masks as grey PNG, on disk.

There are few distinct files, each hard-linked to many keys: what is measured opens and decodes every one of them, and
thousands of pairs are made in seconds. All of them stay in the page cache, so that no disk is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from inpaint_encode.demo.pairs import MaskKind, Size, draw_mask, encode_image, random_picture

__all__ = [
    "LARGE",
    "LITTLE",
    "LITTLE_MIXED",
    "MIXED",
    "ONE_SIZE",
    "SMALL",
    "BenchSet",
    "Pair",
    "pairs_below",
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
class BenchSet:
    """Pairs of some sizes, which take turns from key to key."""

    name: str
    sizes: tuple[Size, ...]

    @property
    def megapixels(self) -> float:
        """Of one image, on average."""
        return sum(width * height for width, height in self.sizes) / len(self.sizes) / 1e6


ONE_SIZE = BenchSet("512 x 512", ((512, 512),))
LARGE = BenchSet("1024 x 1024", ((1024, 1024),))
LITTLE = BenchSet("128 x 128", ((128, 128),))
LITTLE_MIXED = BenchSet(
    "6 sizes around 128 x 128", ((128, 128), (104, 160), (160, 104), (96, 168), (176, 96), (136, 120))
)
"""What a CPU encodes in about a second, and sizes of about as many pixels."""
SMALL = BenchSet("64 x 64", ((64, 64),))
"""For runs over many keys, where what each key costs matters and not what its pixels cost."""
MIXED = BenchSet(
    "12 sizes",
    (
        (403, 605),
        (605, 403),
        (500, 375),
        (427, 640),
        (640, 427),
        (512, 683),
        (683, 512),
        (600, 800),
        (768, 576),
        (701, 701),
        (1000, 667),
        (1024, 768),
    ),
)


def write_pairs(folder: Path, chosen: BenchSet, count: int, distinct: int = 96) -> list[Pair]:
    """Write ``folder/images`` and ``folder/masks`` with ``count`` pairs, ``distinct`` of them different.

    The folder must be new. Pair ``i`` is the same file as pair ``i % distinct`` and has size ``i % distinct`` of the
    set's, counted round.
    """
    pairs = pairs_below(str(folder), count)
    for parent in {Path(path).parent for pair in pairs for path in (pair.image, pair.mask)}:
        parent.mkdir(parents=True)
    for index, pair in enumerate(pairs):
        if index < distinct:
            _write(pair, index, chosen.sizes[index % len(chosen.sizes)])
        else:
            Path(pair.image).hardlink_to(pairs[index % distinct].image)
            Path(pair.mask).hardlink_to(pairs[index % distinct].mask)
    return pairs


def pairs_below(prefix: str, count: int) -> list[Pair]:
    """Name the pairs that `write_pairs` writes, or that lie below ``s3://bucket/prefix`` once its folder is there."""
    keys = [f"{index // 1000:04}/{index:07}" for index in range(count)]
    return [Pair(key, f"{prefix}/images/{key}.jpg", f"{prefix}/masks/{key}.png") for key in keys]


def _write(pair: Pair, index: int, size: Size) -> None:
    rng = np.random.default_rng([index, *size])
    picture = random_picture(rng, size).convert("RGB")  # one photograph is grey, and would decode in a third
    Path(pair.image).write_bytes(encode_image(picture, pair.image, _QUALITY))
    Path(pair.mask).write_bytes(encode_image(draw_mask(rng, size, _KINDS[index % len(_KINDS)]), pair.mask))
