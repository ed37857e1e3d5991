"""What a row of an output was made of, fetched once more by the URIs that it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from inpaint_encode.stores import storage

from .pair_reader import Content, PairReader

__all__ = ["Sources", "fetch_again"]


class Sources(NamedTuple):
    """A row's image and mask, of the versions that it was made of."""

    image: storage.Blob
    mask: Content


def fetch_again(reader: PairReader, row: Mapping[str, Any]) -> Sources | None:
    """Fetch a row's image and mask; None if one of them has gone, or has another version by now.

    Args:
        reader: with the access that the job had.
        row: ``key``, ``image_uri``, ``mask_uri`` and the two versions, as the data files have them.

    Raises:
        PermissionError, storage.Unavailable, OSError: by what the store said.
    """
    pair = {name: row[name] for name in ("key", "image_uri", "mask_uri")}
    try:
        image = reader.image(pair)
        mask: Content = image if pair["mask_uri"] == pair["image_uri"] else reader.mask(pair)
    except FileNotFoundError:
        return None
    same = (image.version, mask.version) == (row["image_version"], row["mask_version"])
    return Sources(image, mask) if same else None
