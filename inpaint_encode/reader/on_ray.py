"""Converts a dataset to a Ray dataset."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa
import torch

from inpaint_encode.stores import storage

from .batches import Transform, apply_transforms, to_tensors
from .columns import Row, TensorColumn

if TYPE_CHECKING:
    import ray.data

    from .groups import RowGroupReader

__all__ = ["to_ray_dataset"]


def to_ray_dataset(groups: RowGroupReader, transforms: tuple[Transform, ...]) -> ray.data.Dataset:
    """Return the rows as a Ray dataset, which Ray's tasks read lazily.

    Tensor columns are numpy arrays in each row's shape; packed masks are unpacked.

    Args:
        groups: the output and the columns to read.
        transforms: get torch tensors; the tensors that they return become arrays.

    Raises:
        ImportError: Ray is not installed.
    """
    try:
        import ray.data
    except ModuleNotFoundError as error:
        raise ImportError("to_ray needs Ray, which is not installed; run: pip install 'ray[data]'") from error

    output, columns = groups.output, groups.columns
    rows = ray.data.read_parquet([storage.join(output.uri, file.path) for file in output.files])
    if columns is not None:
        rows = rows.select_columns(list(columns))
    if output.metadata.mask_encoding == "packed" and (columns is None or "noise_mask" in columns):
        rows = rows.map_batches(_unpack_masks, batch_format="pyarrow")
    return rows.map(partial(_transform, transforms=transforms)) if transforms else rows


def _unpack_masks(table: pa.Table) -> pa.Table:
    from ray.data.extensions import ArrowVariableShapedTensorArray

    masks = list(TensorColumn(table["noise_mask"].combine_chunks()))
    index = table.schema.get_field_index("noise_mask")
    return table.set_column(index, "noise_mask", ArrowVariableShapedTensorArray.from_numpy(masks))


def _transform(row: Row, transforms: tuple[Transform, ...]) -> Row:
    transformed = apply_transforms(to_tensors(row), transforms)
    return {name: value.numpy() if torch.is_tensor(value) else value for name, value in transformed.items()}
