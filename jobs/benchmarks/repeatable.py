"""How far a latent depends on what else is in its batch, by compute type, and what ``--deterministic`` costs."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from inpaint_encode.core.batch import Batch
from inpaint_encode.core.encoder import BatchEncoder
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.settings import VaeSource
from inpaint_encode.vae.properties import vae_metadata

from .figures import Figure, Measure, Ratio, in_turn
from .kernel import sd_vae
from .record import Section

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

__all__ = ["repeatable_section"]

_DTYPES = {"cpu": ("float32", "bfloat16"), "cuda": ("float32", "bfloat16", "float16")}
"""A CPU computes this VAE in float16 for minutes."""

_BATCH = 8
_SETTLE = 40
"""Batches before the clock starts on a GPU: shapes that come often have their graphs then."""


def repeatable_section(device: str, side: int, *, repeats: int, vae: AutoencoderKL | None = None) -> Section:
    """Encode eight square images of ``side`` pixels in one batch and one by one, in each type, and time both.

    A difference is told in millionths of the row's largest value; a median is of the eight images. The rates are of
    the type that ``--dtype auto`` chooses on ``device``, measured in turns.
    """
    vae = sd_vae() if vae is None else vae
    batch = _batch(side)
    spreads = [_spread(vae, dtype, device, batch) for dtype in _DTYPES[device]]
    default, alone = in_turn("images/s", _rates(vae, device, batch), repeats).values()
    text = (
        f"{_BATCH} images of {side} x {side} pixels on {device}, smooth and noisy: how far a latent of such a batch is "
        "from the same image's alone; and images a second of the job's encoder in such batches, and by --deterministic."
    )
    ratio = Ratio("default over --deterministic", default, alone)
    return Section("Repeatable rows", text, (*spreads, default, alone), (ratio,))


def _batch(side: int) -> Batch:
    """Images between a plain colour and noise, as photographs are; nothing is repainted."""
    rng = np.random.default_rng(0)
    coarse = rng.random((_BATCH, 3, 8, 8), np.float32)
    smooth = torch.nn.functional.interpolate(torch.from_numpy(coarse), (side, side), mode="bicubic").numpy()
    noisy = smooth + rng.normal(0, 0.05, smooth.shape)
    pixels = (noisy.clip(0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    nothing = np.zeros((side * side + 7) // 8, np.uint8)
    return Batch(side, side, [np.ascontiguousarray(one).reshape(-1) for one in pixels], [nothing] * _BATCH)


def _encoder(vae: AutoencoderKL, device: str, *, compiled: bool, **settings: Any) -> BatchEncoder:
    metadata = RowMetadata(vae=vae_metadata(vae, VaeSource(vae="random")), samples_dtype="float32", **settings)
    return BatchEncoder(copy.deepcopy(vae), metadata, torch.device(device), compiled=compiled)


def _spread(vae: AutoencoderKL, dtype: str, device: str, batch: Batch) -> Figure:
    encoder = _encoder(vae, device, compiled=False, compute_dtype=dtype)
    together = encoder.launch(batch).result().samples
    alone = np.concatenate([encoder.launch(batch.part([index])).result().samples for index in range(_BATCH)])
    shares = [_share(one, other) for one, other in zip(together, alone, strict=True)]
    return Figure(f"{dtype}, in a batch of {_BATCH} and alone", "millionths of the largest value", tuple(shares))


def _share(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(1e6 * np.abs(one - other).max() / np.abs(other).max())


def _rates(vae: AutoencoderKL, device: str, batch: Batch) -> dict[str, Measure]:
    """Each measure sets the process to its own manner first: torch has one for all that it does."""
    threads = torch.get_num_threads()
    usual, alone = [batch] * 2, [batch.part([index]) for index in range(_BATCH)] * 2
    encoders = {
        deterministic: _encoder(vae, device, compiled=True, deterministic=deterministic)
        for deterministic in (False, True)
    }
    torch.set_num_threads(threads)  # the encoder of --deterministic keeps its one, and sets that of all to come
    if device == "cuda":
        for _ in range(_SETTLE):
            _rate(encoders[False], [batch], deterministic=False)
    return {
        f"in batches of {_BATCH}": lambda: _rate(encoders[False], usual, deterministic=False),
        "--deterministic": lambda: _rate(encoders[True], alone, deterministic=True),
    }


def _rate(encoder: BatchEncoder, batches: Sequence[Batch], *, deterministic: bool) -> float:
    """Images a second."""
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    try:
        begun = time.perf_counter()
        launched = [encoder.launch(batch) for batch in batches]
        images = sum(len(one.result().finite) for one in launched)
        return images / (time.perf_counter() - begun)
    finally:
        torch.use_deterministic_algorithms(False)
