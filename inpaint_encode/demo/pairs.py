"""Image/mask pairs to try a job on, cut from the photographs that the scikit-image wheel carries.

Nothing is downloaded. The same call writes the same bytes every time, given the same Pillow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .photographs import photograph

__all__ = [
    "DemoSet",
    "MaskKind",
    "Size",
    "draw_mask",
    "encoded",
    "random_picture",
    "upload",
    "write_demo_pairs",
    "write_random_pairs",
]

_Choice = TypeVar("_Choice")

MaskKind = Literal["strokes", "boxes", "soft", "noise"]
_KINDS: tuple[MaskKind, ...] = ("strokes", "boxes", "soft", "noise")
Size = tuple[int, int]
"""Width and height in pixels, the order of Pillow."""


class _Cut(NamedTuple):
    """One image of the demo set and its mask; ``zoom`` is the photograph's pixels for one of the image."""

    path: str
    photo: str
    corner: tuple[int, int]
    zoom: float
    size: Size
    mask: MaskKind
    mask_scale: float = 1.0


_ASTRONAUT, _CAMERA, _CAT, _COFFEE = "astronaut.png", "camera.png", "chelsea.png", "coffee.png"
_GALAXIES, _RETINA, _ROCKET = "hubble_deep_field.jpg", "retina.jpg", "rocket.jpg"
_PHOTOS = (_ASTRONAUT, _CAMERA, _CAT, _COFFEE, _GALAXIES, _RETINA, _ROCKET)

_CUTS = (
    _Cut("portraits/astronaut-1.jpg", _ASTRONAUT, (0, 0), 1.0, (512, 512), "strokes"),
    _Cut("portraits/astronaut-2.png", _ASTRONAUT, (110, 0), 0.9, (256, 256), "soft"),
    _Cut("portraits/astronaut-3.jpg", _ASTRONAUT, (0, 170), 1.3, (384, 256), "boxes"),
    _Cut("portraits/astronaut-4.png", _ASTRONAUT, (334, 10), 0.85, (203, 301), "strokes"),
    _Cut("portraits/photographer-1.png", _CAMERA, (40, 30), 1.25, (320, 320), "strokes"),
    _Cut("portraits/photographer-2.jpg", _CAMERA, (128, 40), 0.75, (256, 256), "boxes"),
    _Cut("cats/chelsea-1.jpg", _CAT, (0, 0), 1.0, (451, 300), "strokes"),
    _Cut("cats/chelsea-2.png", _CAT, (80, 20), 1.0, (256, 256), "boxes"),
    _Cut("cats/chelsea-3.jpg", _CAT, (200, 90), 1.4, (128, 128), "soft"),
    _Cut("table/coffee-1.jpg", _COFFEE, (0, 0), 0.99, (605, 403), "strokes", 0.5),
    _Cut("table/coffee-2.png", _COFFEE, (80, 0), 1.25, (320, 320), "boxes"),
    _Cut("table/coffee-3.jpg", _COFFEE, (190, 10), 1.2, (203, 301), "strokes"),
    _Cut("table/coffee-4.jpg", _COFFEE, (130, 0), 1.0, (384, 256), "strokes"),
    _Cut("sky/galaxies-1.png", _GALAXIES, (40, 60), 1.5, (605, 403), "boxes"),
    _Cut("sky/galaxies-2.jpg", _GALAXIES, (480, 400), 1.4, (320, 320), "strokes"),
    _Cut("sky/galaxies-3.jpg", _GALAXIES, (200, 100), 1.0, (256, 256), "strokes"),
    _Cut("launch.jpg", _ROCKET, (0, 0), 1.0, (640, 427), "boxes"),
    _Cut("launch-2.png", _ROCKET, (220, 90), 1.1, (203, 301), "strokes"),
    _Cut("eye-1.jpg", _RETINA, (0, 200), 3.4, (384, 256), "strokes"),
    _Cut("eye-2.png", _RETINA, (20, 450), 3.0, (128, 128), "boxes"),
)
_BROKEN = _Cut("cats/chelsea-4.jpg", _CAT, (100, 0), 1.0, (256, 256), "strokes")
_WITHOUT_MASK = _Cut("sky/galaxies-4.jpg", _GALAXIES, (600, 100), 1.0, (256, 256), "boxes")
_WITHOUT_IMAGE = _Cut("table/coffee-5.png", _COFFEE, (0, 0), 1.0, (320, 320), "boxes")
_CAPTION = "portraits/astronaut-1.txt"


@dataclass(frozen=True)
class DemoSet:
    """What a job must find in the demo set; a key is a path below its prefix without the suffix."""

    pairs: tuple[str, ...]
    """Keys that have an image and a mask, sorted, the broken one among them."""
    broken: str
    """Key of the image file that ends in the middle of its data; its mask is whole."""
    unpaired_images: tuple[str, ...]
    """Keys of images without a mask."""
    unpaired_masks: tuple[str, ...]
    """Keys of masks without an image."""
    ignored_files: tuple[str, ...]
    """Paths below the images' prefix, with suffix, that are not images."""


def write_demo_pairs(folder: Path) -> DemoSet:
    """Write ``folder/images`` and ``folder/masks``: two megabytes, 128 to 640 pixels a side, and what goes wrong.

    Besides good pairs there are one broken image, one image without a mask, one mask without an image and one
    caption file; one mask has another size than its image and one image is grey. The result names them.
    """
    images, masks = folder / "images", folder / "masks"
    for cut in _CUTS:
        _write(images / cut.path, encoded(_picture(cut), cut.path))
        _write(masks / _mask_path(cut.path), _demo_mask(cut))
    whole = encoded(_picture(_BROKEN), _BROKEN.path)
    _write(images / _BROKEN.path, whole[: len(whole) // 2])
    _write(masks / _mask_path(_BROKEN.path), _demo_mask(_BROKEN))
    _write(images / _WITHOUT_MASK.path, encoded(_picture(_WITHOUT_MASK), _WITHOUT_MASK.path))
    _write(masks / _mask_path(_WITHOUT_IMAGE.path), _demo_mask(_WITHOUT_IMAGE))
    _write(images / _CAPTION, b"an astronaut in an orange suit in front of a flag\n")
    return DemoSet(
        pairs=tuple(sorted(_key(cut.path) for cut in (*_CUTS, _BROKEN))),
        broken=_key(_BROKEN.path),
        unpaired_images=(_key(_WITHOUT_MASK.path),),
        unpaired_masks=(_key(_WITHOUT_IMAGE.path),),
        ignored_files=(_CAPTION,),
    )


def write_random_pairs(folder: Path, count: int, *, seed: int, smallest: int = 16, largest: int = 160) -> list[str]:
    """Write ``count`` good pairs with sides of ``smallest`` to ``largest`` pixels; return their keys.

    Pair ``i`` depends on ``seed`` and ``i`` only, so that a larger ``count`` adds pairs and changes none. Every
    sixth mask has another size than its image.
    """
    keys = []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        size = _random_size(rng, smallest, largest)
        mask_size = _random_size(rng, smallest, largest) if index % 6 == 5 else size
        kind = _pick(rng, _KINDS)
        path = f"{index // 100:03}/{index:06}{_pick(rng, ('.png', '.jpg'))}"
        _write(folder / "images" / path, encoded(random_picture(rng, size), path))
        mask = draw_mask(rng, mask_size, kind)
        _write(folder / "masks" / _mask_path(path), encoded(mask, ".png"))
        keys.append(_key(path))
    return keys


def upload(folder: Path, uri: str) -> int:
    """Copy every file below ``folder`` to ``s3://bucket/prefix``, 16 at a time; return how many there were.

    Credentials and endpoint come from the environment, read anew at each call.
    """
    from s3fs import S3FileSystem

    files = sorted(path for path in folder.rglob("*") if path.is_file())
    targets = [f"{uri.rstrip('/')}/{path.relative_to(folder).as_posix()}" for path in files]
    bucket = S3FileSystem(skip_instance_cache=True)
    bucket.put([str(path) for path in files], targets, batch_size=16)
    return len(files)


def draw_mask(rng: np.random.Generator, size: Size, kind: MaskKind) -> Image.Image:
    """Draw a grey ``L`` mask, white where the image is repainted; ``strokes`` and ``boxes`` hold 0 and 255 only.

    ``soft`` is ``strokes`` with blurred edges; ``noise`` is a smooth field of all greys.
    """
    return _DRAW[kind](rng, size)


def _strokes(rng: np.random.Generator, size: Size) -> Image.Image:
    mask = Image.new("L", size)
    draw = ImageDraw.Draw(mask)
    for _ in range(rng.integers(2, 4)):
        width = max(2, round(min(size) * rng.uniform(0.07, 0.14)))
        _brush(draw, _wandering_line(rng, size), width)
    return mask


def _wandering_line(rng: np.random.Generator, size: Size, points: int = 14) -> list[tuple[float, float]]:
    """Points of a hand's movement: even steps whose direction turns slowly; they may leave the picture."""
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.5, points))
    step = min(size) * rng.uniform(0.05, 0.11)
    start = np.array(size) * rng.uniform(0.2, 0.8, 2)
    path = start + step * np.cumsum(np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0)
    return [(float(x), float(y)) for x, y in path]


def _brush(draw: ImageDraw.ImageDraw, points: list[tuple[float, float]], width: int) -> None:
    """Draw a line with round joints and caps."""
    draw.line(points, fill=255, width=width)
    radius = width / 2
    for x, y in points:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)


def _boxes(rng: np.random.Generator, size: Size) -> Image.Image:
    mask = Image.new("L", size)
    draw = ImageDraw.Draw(mask)
    for _ in range(rng.integers(1, 4)):
        sides = np.array(size) * rng.uniform(0.15, 0.4, 2)
        corner = (np.array(size) - sides) * rng.uniform(0, 1, 2)
        draw.rectangle((*corner.round().tolist(), *(corner + sides).round().tolist()), fill=255)
    return mask


def _soft(rng: np.random.Generator, size: Size) -> Image.Image:
    return _strokes(rng, size).filter(ImageFilter.GaussianBlur(max(1.0, min(size) / 50)))


def _noise(rng: np.random.Generator, size: Size) -> Image.Image:
    coarse = rng.integers(0, 256, (6, 6), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


_DRAW: dict[MaskKind, Callable[[np.random.Generator, Size], Image.Image]] = {
    "strokes": _strokes,
    "boxes": _boxes,
    "soft": _soft,
    "noise": _noise,
}


def _demo_mask(cut: _Cut) -> bytes:
    """The mask's file; its strokes depend on the path only."""
    rng = np.random.default_rng(list(cut.path.encode()))
    width, height = cut.size
    size = round(width * cut.mask_scale), round(height * cut.mask_scale)
    return encoded(draw_mask(rng, size, cut.mask), ".png")


def _picture(cut: _Cut) -> Image.Image:
    return _cut_out(photograph(cut.photo), cut.corner, cut.zoom, cut.size)


def random_picture(rng: np.random.Generator, size: Size) -> Image.Image:
    """Cut a piece of a photograph, at its own scale or smaller; one that is too small for ``size`` is enlarged."""
    photo = photograph(_pick(rng, _PHOTOS))
    widest = min(photo.width / size[0], photo.height / size[1])
    zoom = rng.uniform(min(1.0, widest), widest)
    left = rng.uniform(0, photo.width - size[0] * zoom)
    top = rng.uniform(0, photo.height - size[1] * zoom)
    return _cut_out(photo, (left, top), zoom, size)


def _cut_out(photo: Image.Image, corner: tuple[float, float], zoom: float, size: Size) -> Image.Image:
    left, top = corner
    box = left, top, left + size[0] * zoom, top + size[1] * zoom
    return photo.resize(size, Image.Resampling.BICUBIC, box=box)


def _random_size(rng: np.random.Generator, smallest: int, largest: int) -> Size:
    width, height = rng.integers(smallest, largest, 2, endpoint=True)
    return int(width), int(height)


def _pick(rng: np.random.Generator, choices: tuple[_Choice, ...]) -> _Choice:
    return choices[rng.integers(len(choices))]


def encoded(image: Image.Image, path: str, quality: int = 92) -> bytes:
    """Return the file's bytes: a JPEG of ``quality`` if ``path`` ends in ``.jpg``, else a PNG."""
    buffer = BytesIO()
    if path.endswith(".jpg"):
        image.save(buffer, "JPEG", quality=quality)
    else:
        image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _mask_path(path: str) -> str:
    return f"{_key(path)}.png"


def _key(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))
