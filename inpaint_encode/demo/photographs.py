"""The photographs that the scikit-image wheel carries. Nothing is downloaded."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

__all__ = ["photograph"]


@cache
def photograph(name: str) -> Image.Image:
    """Read one of the wheel's photographs; RuntimeError says what to install when there is none."""
    wheel = find_spec("skimage")
    if wheel is None or wheel.origin is None:
        raise RuntimeError("the demo's photographs are scikit-image's: pip install 'inpaint-encode[demo]'")
    with Image.open(Path(wheel.origin).parent / "data" / name) as photo:
        photo.load()
        return photo.copy()
