"""Photographs that the demonstration's VAE is trained on, photographs held out, and their documented licenses."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["HELD_OUT", "TRAINED_ON", "Photograph"]


class Photograph(NamedTuple):
    """A file in scikit-image's wheel."""

    file: str
    loader: str
    """Function of `skimage.data` that documents it."""
    licence: str
    """Quoted from that function's docstring; a new photograph needs one too."""
    share: float = 0.0
    """Relative frequency in training."""


_BY_NASA_AND_OTHERS = "released into the public domain"
_TEXTURE = "licensed under the Creative Commons CC0 License"

TRAINED_ON = (
    Photograph("astronaut.png", "astronaut", _BY_NASA_AND_OTHERS, 4),
    Photograph("camera.png", "camera", "CC0 by the photographer (Lav Varshney)", 2),
    Photograph("rocket.jpg", "rocket", "released in the public domain", 2),
    Photograph("hubble_deep_field.jpg", "hubble_deep_field", "may be freely used in the public domain", 1),
    Photograph("retina.jpg", "retina", "Creative Commons CC0 1.0 Universal Public Domain Dedication", 1),
    Photograph("brick.png", "brick", _TEXTURE, 0.7),
    Photograph("grass.png", "grass", _TEXTURE, 0.7),
    Photograph("gravel.png", "gravel", _TEXTURE, 0.7),
    Photograph(
        "clock_motion.png", "clock", "Released into the public domain by the photographer (Stefan van der Walt)", 0.3
    ),
    Photograph("text.png", "text", _BY_NASA_AND_OTHERS, 0.2),
)
HELD_OUT = (
    Photograph("coffee.png", "coffee", "CC0 by the photographer (Rachel Michetti)"),
    Photograph("chelsea.png", "chelsea", "CC0 by the photographer (Stefan van der Walt)"),
)
