"""Bytes become pixels and a mask: `files` has the rules for one file, `pair` brings image and mask together.

`drawn` makes masks for images that have none.
"""

from .image_file import decode_image, decode_mask, upright_size
from .pair import DecodedImage, PairDecoder

__all__ = [
    "DecodedImage",
    "PairDecoder",
    "decode_image",
    "decode_mask",
    "upright_size",
]
