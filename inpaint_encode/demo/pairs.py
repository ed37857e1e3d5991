"""Image/mask pairs to try a job on, cut from the photographs in the scikit-image wheel.

Nothing is downloaded. With the same Pillow, the same call writes the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

MaskKind = Literal["strokes", "boxes", "soft", "noise"]
_KINDS: tuple[MaskKind, ...] = ("strokes", "boxes", "soft", "noise")
Size = tuple[int, int]
"""Width and height in pixels, in Pillow's order."""


class _Cut(NamedTuple):
    """One image of the demo set and its mask."""

    path: str
    photo: str
    corner: tuple[int, int]
    """Left and top in the photograph."""
    zoom: float
    """Pixels of the photograph per pixel of the image."""
    size: Size
    mask: MaskKind
    mask_scale: float = 1.0
    """Size of the mask relative to the image."""

    @property
    def key(self) -> str:
        return self.path.rpartition(".")[0]


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
    """Contents of the demo set. A key is a path below its prefix without the suffix."""

    pairs: tuple[str, ...]
    """Sorted keys with an image and a mask, including the broken one."""
    broken: str
    """Key of a truncated image file; its mask is intact."""
    unpaired_images: tuple[str, ...]
    unpaired_masks: tuple[str, ...]
    ignored_files: tuple[str, ...]
    """Paths below the images' prefix, with suffix, that are not images."""


def write_demo_pairs(folder: Path) -> DemoSet:
    """Write ``folder/images`` and ``folder/masks``: two megabytes, 128 to 640 pixels a side.

    Beside good pairs there are a broken image, an image without a mask, a mask without an image and a caption file.
    One mask has another size than its image, and one image is gray.
    """
    for cut in (*_CUTS, _BROKEN, _WITHOUT_MASK, _WITHOUT_IMAGE):
        if cut is not _WITHOUT_IMAGE:
            image = encode_image(_cut_out(photograph(cut.photo), cut.corner, cut.zoom, cut.size), cut.path)
            _write(folder / "images" / cut.path, image[: len(image) // 2] if cut is _BROKEN else image)
        if cut is not _WITHOUT_MASK:
            rng = np.random.default_rng(list(cut.path.encode()))  # the mask depends on the path only
            width, height = (round(side * cut.mask_scale) for side in cut.size)
            mask = draw_mask(rng, (width, height), cut.mask)
            _write(folder / "masks" / f"{cut.key}.png", encode_image(mask, ".png"))
    _write(folder / "images" / _CAPTION, b"an astronaut in an orange suit in front of a flag\n")
    return DemoSet(
        pairs=tuple(sorted(cut.key for cut in (*_CUTS, _BROKEN))),
        broken=_BROKEN.key,
        unpaired_images=(_WITHOUT_MASK.key,),
        unpaired_masks=(_WITHOUT_IMAGE.key,),
        ignored_files=(_CAPTION,),
    )


def write_random_pairs(folder: Path, count: int, *, seed: int, smallest: int = 16, largest: int = 160) -> list[str]:
    """Write ``count`` good pairs with sides of ``smallest`` to ``largest`` pixels; return their keys.

    Pair ``i`` depends on ``seed`` and ``i`` only: a larger ``count`` adds pairs and changes none. Every sixth mask has
    another size than its image.
    """
    keys = []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        size = _random_size(rng, smallest, largest)
        mask_size = _random_size(rng, smallest, largest) if index % 6 == 5 else size
        kind = _KINDS[rng.integers(len(_KINDS))]
        suffix = (".png", ".jpg")[rng.integers(2)]
        key = f"{index // 100:03}/{index:06}"
        _write(folder / "images" / f"{key}{suffix}", encode_image(random_picture(rng, size), suffix))
        _write(folder / "masks" / f"{key}.png", encode_image(draw_mask(rng, mask_size, kind), ".png"))
        keys.append(key)
    return keys


def upload(folder: Path, uri: str) -> int:
    """Copy every file below ``folder`` to ``s3://bucket/prefix``, 16 at a time; return the number of files.

    Credentials and endpoint are read from the environment at each call.
    """
    from s3fs import S3FileSystem

    files = sorted(path for path in folder.rglob("*") if path.is_file())
    targets = [f"{uri.rstrip('/')}/{path.relative_to(folder).as_posix()}" for path in files]
    S3FileSystem(skip_instance_cache=True).put([str(path) for path in files], targets, batch_size=16)
    return len(files)


def draw_mask(rng: np.random.Generator, size: Size, kind: MaskKind) -> Image.Image:
    """Draw an ``L`` mask, white where the image is repainted.

    ``strokes`` and ``boxes`` have the values 0 and 255 only; ``soft`` is ``strokes`` with blurred edges; ``noise`` is a
    smooth field of all grays.
    """
    if kind == "noise":
        coarse = rng.integers(0, 256, (6, 6), dtype=np.uint8)
        return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    mask = Image.new("L", size)
    draw = ImageDraw.Draw(mask)
    if kind == "boxes":
        for _ in range(rng.integers(1, 4)):
            sides = np.array(size) * rng.uniform(0.15, 0.4, 2)
            corner = (np.array(size) - sides) * rng.uniform(0, 1, 2)
            draw.rectangle((*corner.round().tolist(), *(corner + sides).round().tolist()), fill=255)
        return mask
    for _ in range(rng.integers(2, 4)):  # strokes of even steps, whose direction turns slowly
        width = max(2, round(min(size) * rng.uniform(0.07, 0.14)))
        heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.5, 14))
        step = min(size) * rng.uniform(0.05, 0.11)
        start = np.array(size) * rng.uniform(0.2, 0.8, 2)
        path = start + step * np.cumsum(np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0)
        points = [(float(x), float(y)) for x, y in path]
        draw.line(points, fill=255, width=width)
        for x, y in points:  # round joints and caps
            draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)
    return mask.filter(ImageFilter.GaussianBlur(max(1.0, min(size) / 50))) if kind == "soft" else mask


@cache
def photograph(name: str) -> Image.Image:
    """Read a photograph from the scikit-image wheel; RuntimeError says what to install if there is no wheel."""
    wheel = find_spec("skimage")
    if wheel is None or wheel.origin is None:
        raise RuntimeError("the demo's photographs come with scikit-image: pip install 'inpaint-encode[demo]'")
    with Image.open(Path(wheel.origin).parent / "data" / name) as photo:
        return photo.copy()


def random_picture(rng: np.random.Generator, size: Size) -> Image.Image:
    """Cut a piece of a photograph, at its own scale or smaller; a photograph smaller than ``size`` is enlarged."""
    photo = photograph(_PHOTOS[rng.integers(len(_PHOTOS))])
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


def encode_image(image: Image.Image, path: str, quality: int = 92) -> bytes:
    """Return the bytes of a file: a JPEG of ``quality`` if ``path`` ends in ``.jpg``, else a PNG."""
    buffer = BytesIO()
    if path.endswith(".jpg"):
        image.save(buffer, "JPEG", quality=quality)
    else:
        image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
