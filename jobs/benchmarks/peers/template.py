"""The usual Ray Data job: a table of pairs, a task that decodes, an actor that encodes, ``write_parquet``.

It follows Ray's examples of batch inference, with their defaults. Ray decides whether decoding runs in separate tasks
or, where the actor needs no GPU, inside the actor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import ray.data
import torch
from numpy.typing import NDArray

from jobs.benchmarks.data import Pair

from .steps import dilate, group_by_shape, prepare
from .task import LoadEncode, Program, Task

__all__ = ["TEMPLATE"]

BATCH = 8

_Columns = dict[str, Any]


def run(task: Task) -> None:
    """Do the whole task on the Ray that this process is connected to; it writes Parquet files below ``task.output``."""
    (
        ray.data.from_items([pair._asdict() for pair in task.pairs])
        .map_batches(_decode, batch_size=BATCH)
        .map_batches(
            _Encoder,
            fn_constructor_args=(task.load_encode, task.grow_mask_by),
            batch_size=BATCH,
            compute=ray.data.ActorPoolStrategy(size=1),
        )
        .write_parquet(str(task.output))
    )


def _decode(batch: _Columns) -> _Columns:
    prepared = [prepare(Pair(*row)) for row in zip(batch["key"], batch["image"], batch["mask"], strict=True)]
    return {
        "key": batch["key"],
        "pixels": _tensors([pair.pixels.numpy() for pair in prepared]),
        "mask": _tensors([pair.mask.numpy() for pair in prepared]),
    }


class _Encoder:
    def __init__(self, load_encode: LoadEncode, grow_mask_by: int) -> None:
        self._encode, self._grow_mask_by = load_encode(), grow_mask_by

    def __call__(self, batch: _Columns) -> _Columns:
        """Encode the images of each size together; return all rows in their order."""
        samples, grown = [None] * len(batch["key"]), [None] * len(batch["key"])
        for rows in group_by_shape(batch["mask"]):
            pixels = torch.from_numpy(np.stack([batch["pixels"][row] for row in rows]))
            masks = torch.from_numpy(np.stack([batch["mask"][row] for row in rows]))
            latents = self._encode(pixels).to(torch.float16).numpy()
            dilated = dilate(masks, self._grow_mask_by)[:, None].numpy()
            for row, one_samples, one_grown in zip(rows, latents, dilated, strict=True):
                samples[row], grown[row] = one_samples, one_grown
        return {"key": batch["key"], "samples": _tensors(samples), "noise_mask": _tensors(grown)}


def _tensors(values: list[Any]) -> NDArray[Any]:
    """Return a column of tensors: one array if the shapes are equal, otherwise an array of arrays."""
    if len({value.shape for value in values}) == 1:
        return np.stack(values)
    column = np.empty(len(values), object)
    column[:] = values
    return column


TEMPLATE = Program("Ray Data template", run)
