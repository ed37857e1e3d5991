"""From the bytes of an image and of its mask to cropped pixels and a binary mask.

* `image_file`: one file, from bytes to an array. The rules for JPEG, PNG, TIFF and the other formats are here.
* `pair`: an image and its mask, brought to one size and cropped alike.
* `color`: embedded ICC profiles.
* `strict`: checks of PNG, TIFF and GIF files that Pillow does not make.
* `pillow`: opens files with Pillow's plugins and leaves Pillow's process-wide settings as they are.
"""

from .image_file import DecodedFile, decode_image, decode_mask, upright_size
from .pair import DecodedImage, PairDecoder

__all__ = [
    "DecodedFile",
    "DecodedImage",
    "PairDecoder",
    "decode_image",
    "decode_mask",
    "upright_size",
]
