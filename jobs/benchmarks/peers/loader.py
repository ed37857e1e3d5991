"""A torch ``DataLoader``: decoding in worker processes, encoding in batches, one ``.npz`` for each image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from jobs.benchmarks.data import Pair

from .contestant import Contestant, Task
from .steps import Prepared, dilate, prepare, save_npz

__all__ = ["LOADER"]

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
        collate_fn=_by_size,
        pin_memory=task.device.startswith("cuda"),
    )
    for batches in loader:
        for keys, pixels, masks in batches:
            latents = encode(pixels.to(task.device, non_blocking=True))
            grown = dilate(masks.to(task.device, non_blocking=True), task.grow_mask_by)
            for row in zip(keys, latents.to(torch.float16).cpu(), grown.cpu(), strict=True):
                save_npz(task.output, *row)


def _by_size(items: list[_Item]) -> list[_Batch]:
    """Make a batch of each size that is among ``items``."""
    groups: defaultdict[torch.Size, list[_Item]] = defaultdict(list)
    for key, prepared in items:
        groups[prepared.mask.shape].append((key, prepared))
    return [
        (
            [key for key, _ in group],
            torch.stack([prepared.pixels for _, prepared in group]),
            torch.stack([prepared.mask for _, prepared in group]),
        )
        for group in groups.values()
    ]


LOADER = Contestant(f"DataLoader, {WORKERS} workers", run)
