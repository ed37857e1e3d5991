"""An output as a Ray dataset, tensors as arrays and packed masks unpacked."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa
import torch

from inpaint_encode.reader.columns import Tensors
from inpaint_encode.stores import storage

from .batches import Function, applied, as_tensors
from .columns import Row

if TYPE_CHECKING:
    import ray.data

    from .dataset import LatentDataset

__all__ = ["dataset_of"]


def dataset_of(dataset: LatentDataset) -> ray.data.Dataset:
    """Return the rows of ``dataset`` as a Ray dataset, which reads them in Ray's tasks, when it is asked for them.

    Its tensor columns come as numpy arrays of each row's shape. The functions of ``dataset`` see torch tensors there,
    too, and what they return becomes arrays again.
    """
    import ray.data

    output, columns = dataset.groups.output, dataset.groups.columns
    found = ray.data.read_parquet([storage.join(output.uri, file.path) for file in output.files])
    if columns is not None:
        found = found.select_columns(list(columns))
    if dataset.metadata.mask_encoding == "packed" and (columns is None or "noise_mask" in columns):
        found = found.map_batches(_unpacked, batch_format="pyarrow")
    return found.map(partial(_made, functions=dataset.functions)) if dataset.functions else found


def _unpacked(table: pa.Table) -> pa.Table:
    from ray.data.extensions import ArrowVariableShapedTensorArray

    masks = list(Tensors(table["noise_mask"].combine_chunks()))
    at = table.schema.get_field_index("noise_mask")
    return table.set_column(at, "noise_mask", ArrowVariableShapedTensorArray.from_numpy(masks))


def _made(row: Row, functions: tuple[Function, ...]) -> Row:
    made = applied(as_tensors(row), functions)
    return {name: value.numpy() if torch.is_tensor(value) else value for name, value in made.items()}
