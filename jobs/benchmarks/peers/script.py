"""A plain script: one image after the other, one ``.npz`` for each."""

from __future__ import annotations

from .steps import dilate, prepare, save_npz
from .task import Program, Task

__all__ = ["SCRIPT"]


def run(task: Task) -> None:
    """Do the whole task in this process, in batches of one."""
    encode = task.load_encode()
    for pair in task.pairs:
        pixels, mask = prepare(pair)
        latents = encode(pixels[None])
        grown = dilate(mask[None], task.grow_mask_by)
        save_npz(task.output, pair.key, latents[0], grown[0])


SCRIPT = Program("plain script", run)
