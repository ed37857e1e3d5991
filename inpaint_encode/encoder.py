"""Batches of 8-bit pixels and binary masks become latents on one device; what a worker does, without Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import JobFailed
from .settings import RowSettings, VaeSource
from .transform import grow_mask, neutralise
from .vae import compute_dtype, load_vae, posterior_mean, warm_up, weights_sha256

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

__all__ = ["BatchEncoder", "EncodedBatch"]


class EncodedBatch(NamedTuple):
    """A batch of rows, on the CPU."""

    samples: NDArray[Any]
    """``[B, C, h, w]`` in the type that is stored; infinite where a float16 cannot hold the value."""
    noise_mask: NDArray[np.uint8]
    """``[B, H, W]``, grown."""
    coverage: NDArray[np.float32]
    """``[B]``: share of ``noise_mask`` that is 1."""


class BatchEncoder:
    """One warmed-up VAE on one device, in the type it computes in."""

    def __init__(self, vae: AutoencoderKL, settings: RowSettings, device: torch.device) -> None:
        if settings.deterministic:
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
        dtype = compute_dtype(settings.dtype, device, vae.config)
        if dtype == torch.float32:
            torch.backends.cudnn.allow_tf32 = False  # on by default, and three digits short of float32
        self.precision = str(dtype).removeprefix("torch.")
        self._vae = vae.to(device, dtype)
        self._device = device
        self._grow_mask_by = settings.grow_mask_by
        self._samples_dtype = {"float16": torch.float16, "float32": torch.float32}[settings.samples_dtype]
        # A GPU divides by a plain number by multiplying with its inverse, which is off by a bit: by a tensor it is not.
        self._full_scale = torch.tensor([255.0], device=device)
        warm_up(self._vae)

    @classmethod
    def load(cls, source: VaeSource, settings: RowSettings, expected_sha256: str, device: str) -> BatchEncoder:
        """Load the VAE onto ``device`` and make sure that it is the one the job was begun with.

        Raises:
            JobFailed: this node has other weights under the same name.
        """
        vae = load_vae(source)
        found = weights_sha256(vae)
        if found != expected_sha256:
            raise JobFailed(
                f"--vae {source.vae} has weights {found[:12]} on this node and {expected_sha256[:12]} where the job "
                "was begun; give a --revision, or the same folder on every node"
            )
        return cls(vae, settings, torch.device(device))

    def check(self) -> None:
        """Encode a small image once more; raises if the device or the model is not usable any more."""
        warm_up(self._vae)

    def encode(self, pixels: NDArray[np.uint8], mask: NDArray[np.uint8]) -> EncodedBatch:
        """Neutralise, encode and grow a batch of equal sizes: uint8 ``[B, H, W, 3]`` and 0/1 ``[B, H, W]``."""
        levels = self._on_device(pixels).float() / self._full_scale
        binary = self._on_device(mask)
        samples = posterior_mean(self._vae, neutralise(levels, binary.float()))
        grown = grow_mask(binary, self._grow_mask_by)
        return EncodedBatch(
            samples=samples.to(self._samples_dtype).cpu().numpy(),
            noise_mask=grown.cpu().numpy(),
            coverage=(grown.sum(dim=(1, 2)).double() / grown[0].numel()).float().cpu().numpy(),
        )

    def _on_device(self, values: NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy(values).to(self._device)
