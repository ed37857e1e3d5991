"""Images without masks become pairs with masks that are drawn."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from inpaint_encode.errors import UsageError
from inpaint_encode.settings import Source
from inpaint_encode.sources.random_mask import DRAWING_VERSION

__all__ = ["with_random_masks"]


def with_random_masks(images: pa.Table, source: Source) -> pa.Table:
    """Repeat each image's row for its ``--random-masks``, with ``mask_uri, mask_index, mask_version``.

    The first mask's key is the image's; those after it have their number behind it, so that more masks change no key.

    Raises:
        UsageError: so two pairs would have one key.
    """
    count = source.random_masks
    pairs = images.take(np.repeat(np.arange(images.num_rows), count)) if count > 1 else images
    index = pa.array(np.tile(np.arange(count, dtype=np.int32), images.num_rows))
    numbers = index.cast(pa.string())
    spelled = f"random:{source.mask_style}?seed={source.mask_seed}&index="
    columns = {name: pairs[name] for name in pairs.column_names} | {
        "mask_uri": pc.binary_join_element_wise(spelled, numbers, ""),
        "mask_index": index,
        "mask_version": pa.repeat(DRAWING_VERSION, pairs.num_rows),
    }
    if count > 1:
        numbered = pc.binary_join_element_wise(pairs["key"], numbers, "/")
        columns["key"] = pc.if_else(pc.equal(index, 0), pairs["key"], numbered)
        _refuse_shared_keys(columns["key"])
    return pa.table(columns)


def _refuse_shared_keys(keys: pa.ChunkedArray) -> None:
    """Images of one source have keys of their own, but one may be named like another's mask."""
    if pc.count_distinct(keys).as_py() == len(keys):
        return
    counts = keys.value_counts()
    shared = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")[0].as_py()
    image, _, number = shared.rpartition("/")
    raise UsageError(
        f"--random-masks: {shared} is an image's key, and that of mask {number} of image {image}; rename one of the "
        "images, or draw one mask each"
    )
