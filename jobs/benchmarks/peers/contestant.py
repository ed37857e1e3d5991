"""What every peer is told, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from jobs.benchmarks.data import Pair
from jobs.benchmarks.fake_vae import NullVae, WaitingVae

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

__all__ = ["Contestant", "Encode", "LoadEncode", "LoadStandIn", "LoadVae", "Task"]

Encode = Callable[[Tensor], Tensor]
"""float32 ``[B, 3, H, W]`` in -1..1, greyed, on the CPU, to latents ``[B, C, h, w]`` on the device that made them."""

LoadEncode = Callable[[], Encode]
"""Loads the VAE in the process that encodes; it must survive pickling, as Ray sends it to a worker."""


class Task(NamedTuple):
    """The same for every peer: what to encode, by what, to where."""

    pairs: Sequence[Pair]
    load_encode: LoadEncode
    output: Path
    """A new folder; it holds the float16 posterior mean and the grown uint8 mask of every pair when `run` returns."""
    grow_mask_by: int = 6
    device: str = "cpu"
    """Where ``load_encode`` puts its VAE, and where masks are grown."""


@dataclass(frozen=True)
class Contestant:
    """A program that does a `Task` from its beginning to its end."""

    name: str
    run: Callable[[Task], None]


@dataclass(frozen=True)
class LoadVae:
    """Load a saved ``AutoencoderKL`` as diffusers' documentation does, without any tuning."""

    folder: str
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def __call__(self) -> Encode:
        """Read the weights; call this where the encoding is done."""
        from diffusers import AutoencoderKL

        vae: AutoencoderKL = AutoencoderKL.from_pretrained(self.folder, torch_dtype=self.dtype, use_safetensors=True)
        vae = vae.to(self.device).eval()

        @torch.inference_mode()
        def encode(pixels: Tensor) -> Tensor:
            latents: Tensor = vae.encode(pixels.to(self.device, self.dtype)).latent_dist.mode()
            return latents

        return encode


@dataclass(frozen=True)
class LoadStandIn:
    """Make a stand-in for the VAE; with ``seconds_per_image`` one that waits."""

    seconds_per_image: float = 0.0

    def __call__(self) -> Encode:
        """Make it; nothing is loaded."""
        return WaitingVae(self.seconds_per_image) if self.seconds_per_image else NullVae()
