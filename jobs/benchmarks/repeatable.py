"""How much a latent depends on the other images of its batch, by compute dtype; the cost of ``--deterministic``."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from inpaint_encode.core.batch import Batch
from inpaint_encode.core.encoder import BatchEncoder
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.settings import VaeSource
from inpaint_encode.vae.registry import vae_metadata

from .figures import Figure, Measure, Ratio, in_turn
from .kernel import sd_vae
from .record import Section

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

__all__ = ["repeatable_section"]

_DTYPES = {"cpu": ("float32", "bfloat16"), "cuda": ("float32", "bfloat16", "float16")}
"""Not float16 on a CPU: it takes minutes."""
_BATCH = 8
_WARM_UP = 40
"""Batches before the clock starts on a GPU, so that the frequent shape is compiled."""


def repeatable_section(device: str, side: int, *, repeats: int, vae: AutoencoderKL | None = None) -> Section:
    """Encode eight square images of ``side`` pixels in one batch and one by one, in each dtype, and time both.

    A difference is in millionths of the row's largest value; a median is of the eight images. The rates are of the
    dtype that ``--dtype auto`` selects on ``device``, measured in turn.
    """
    vae = sd_vae() if vae is None else vae
    batch = _batch(side)
    differences = [_difference(vae, dtype, device, batch) for dtype in _DTYPES[device]]
    default, alone = in_turn("images/s", _rates(vae, device, batch), repeats).values()
    text = (
        f"{_BATCH} images of {side} x {side} pixels on {device}, smooth and noisy. Difference between a latent from "
        f"a batch of {_BATCH} and from the image alone; rate of the job's encoder in batches and with --deterministic."
    )
    ratio = Ratio("default over --deterministic", default, alone)
    return Section("Repeatable rows", text, (*differences, default, alone), (ratio,))


def _batch(side: int) -> Batch:
    """Return images between a plain color and noise, like photographs, with empty masks."""
    rng = np.random.default_rng(0)
    coarse = rng.random((_BATCH, 3, 8, 8), np.float32)
    smooth = torch.nn.functional.interpolate(torch.from_numpy(coarse), (side, side), mode="bicubic").numpy()
    noisy = smooth + rng.normal(0, 0.05, smooth.shape)
    pixels = (noisy.clip(0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    mask = np.zeros((side * side + 7) // 8, np.uint8)
    return Batch(side, side, [np.ascontiguousarray(one).reshape(-1) for one in pixels], [mask] * _BATCH)


def _encoder(vae: AutoencoderKL, device: str, *, compiled: bool, **settings: Any) -> BatchEncoder:
    metadata = RowMetadata(vae=vae_metadata(vae, VaeSource(vae="random")), samples_dtype="float32", **settings)
    return BatchEncoder(copy.deepcopy(vae), metadata, torch.device(device), compiled=compiled)


def _difference(vae: AutoencoderKL, dtype: str, device: str, batch: Batch) -> Figure:
    encoder = _encoder(vae, device, compiled=False, compute_dtype=dtype)
    together = encoder.launch(batch).result().samples
    alone = np.concatenate([encoder.launch(batch.part([index])).result().samples for index in range(_BATCH)])
    axes = (1, 2, 3)
    shares = 1e6 * np.abs(together - alone).max(axes) / np.abs(alone).max(axes)
    name = f"{dtype}, in a batch of {_BATCH} and alone"
    return Figure(name, "millionths of the largest value", tuple(map(float, shares)))


def _rates(vae: AutoencoderKL, device: str, batch: Batch) -> dict[str, Measure]:
    """Each measure sets torch's deterministic mode, which is global, before it encodes."""
    threads = torch.get_num_threads()
    batches, alone = [batch] * 2, [batch.part([index]) for index in range(_BATCH)] * 2
    encoders = {
        deterministic: _encoder(vae, device, compiled=True, deterministic=deterministic)
        for deterministic in (False, True)
    }
    torch.set_num_threads(threads)  # the encoder of --deterministic has set it to one
    if device == "cuda":
        for _ in range(_WARM_UP):
            _rate(encoders[False], [batch], deterministic=False)
    return {
        f"in batches of {_BATCH}": lambda: _rate(encoders[False], batches, deterministic=False),
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
