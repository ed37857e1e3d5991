"""The usual Ray Data job: a table of pairs, a task that decodes, an actor that encodes, ``write_parquet``.

It is what Ray's own examples of batch inference come to for this work, with their defaults. Ray decides whether the
decoding runs in tasks of its own or, where no GPU is asked for, inside the actor.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import ray.data
import torch
from numpy.typing import NDArray

from jobs.benchmarks.data import Pair

from .contestant import Contestant, LoadEncode, Task
from .steps import dilate, prepare

__all__ = ["TEMPLATE"]

BATCH = 8

_Columns = dict[str, Any]


def run(task: Task) -> None:
    """Do the whole task on the Ray that this process has joined; the Parquet files are below ``task.output``."""
    (
        ray.data.from_items([pair._asdict() for pair in task.pairs])
        .map_batches(_decode, batch_size=BATCH)
        .map_batches(
            _Encoder,
            fn_constructor_args=(task.load_encode, task.grow_mask_by, task.device),
            batch_size=BATCH,
            num_gpus=1 if task.device.startswith("cuda") else None,
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
    def __init__(self, load_encode: LoadEncode, grow_mask_by: int, device: str) -> None:
        self._encode, self._grow_mask_by, self._device = load_encode(), grow_mask_by, device

    def __call__(self, batch: _Columns) -> _Columns:
        """Encode what is of one size together, and give all rows back in their order."""
        samples, grown = [None] * len(batch["key"]), [None] * len(batch["key"])
        for rows in _by_size(batch["mask"]):
            pixels = torch.from_numpy(np.stack([batch["pixels"][row] for row in rows]))
            masks = torch.from_numpy(np.stack([batch["mask"][row] for row in rows]))
            latents = self._encode(pixels.to(self._device)).to(torch.float16).cpu().numpy()
            dilated = dilate(masks.to(self._device), self._grow_mask_by)[:, None].cpu().numpy()
            for row, one_samples, one_grown in zip(rows, latents, dilated, strict=True):
                samples[row], grown[row] = one_samples, one_grown
        return {"key": batch["key"], "samples": _tensors(samples), "noise_mask": _tensors(grown)}


def _by_size(masks: NDArray[Any]) -> list[list[int]]:
    groups: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for row, mask in enumerate(masks):
        groups[mask.shape].append(row)
    return list(groups.values())


def _tensors(values: list[Any]) -> NDArray[Any]:
    """A column of tensors: one array where the shapes agree, an array of arrays where they do not."""
    if len({value.shape for value in values}) == 1:
        return np.stack(values)
    column = np.empty(len(values), object)
    column[:] = values
    return column


TEMPLATE = Contestant("Ray Data template", run)
