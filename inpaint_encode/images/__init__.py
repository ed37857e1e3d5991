"""Bytes become pixels and a mask: `files` has the rules for one file, `pair` brings image and mask together.

`drawn` makes masks for images that have none.
"""

from .drawn import DRAWING_VERSION, Drawing
from .files import IMAGE_SUFFIXES, decode_image, decode_mask, upright_size
from .pair import DecodedImage, PairDecoder

__all__ = [
    "DRAWING_VERSION",
    "IMAGE_SUFFIXES",
    "DecodedImage",
    "Drawing",
    "PairDecoder",
    "decode_image",
    "decode_mask",
    "upright_size",
]
