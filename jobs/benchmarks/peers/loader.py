"""A torch ``DataLoader``: decoding in worker processes, encoding in batches, one ``.npz`` for each image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from jobs.benchmarks.data import Pair

from .steps import Prepared, dilate, group_by_shape, prepare, save_npz
from .task import Program, Task

__all__ = ["BATCH", "LOADER", "WORKERS"]

BATCH = 8
WORKERS = 2

_Item = tuple[str, Prepared]
_Batch = tuple[list[str], Tensor, Tensor]


class _Pairs(Dataset[_Item]):
    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> _Item:
        return self._pairs[index].key, prepare(self._pairs[index])


def run(task: Task) -> None:
    """Do the whole task; two workers decode while this process encodes and writes."""
    encode = task.load_encode()
    loader = DataLoader(
        _Pairs(task.pairs),
        batch_size=BATCH,
        num_workers=WORKERS,
        collate_fn=_collate,
    )
    for batches in loader:
        for keys, pixels, masks in batches:
            latents = encode(pixels)
            grown = dilate(masks, task.grow_mask_by)
            for row in zip(keys, latents, grown, strict=True):
                save_npz(task.output, *row)


def _collate(items: list[_Item]) -> list[_Batch]:
    """Return one batch for each size among ``items``."""
    groups = [[items[row] for row in rows] for rows in group_by_shape([prepared.mask for _, prepared in items])]
    return [
        (
            [key for key, _ in group],
            torch.stack([prepared.pixels for _, prepared in group]),
            torch.stack([prepared.mask for _, prepared in group]),
        )
        for group in groups
    ]


LOADER = Program(f"DataLoader, {WORKERS} workers", run)
