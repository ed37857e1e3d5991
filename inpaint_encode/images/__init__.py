"""Bytes become pixels and a mask: `files` has the rules for one file, `pair` brings image and mask together."""

from .files import IMAGE_SUFFIXES, decode_image, decode_mask, upright_size
from .pair import DecodedImage, PairDecoder

__all__ = ["IMAGE_SUFFIXES", "DecodedImage", "PairDecoder", "decode_image", "decode_mask", "upright_size"]
