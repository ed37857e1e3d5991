"""The rate of the VAE's encoder on tensors in the device's memory, also as a share of the hardware's peak.

The VAE has the size of Stable Diffusion's and random weights, which does not change its speed.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from .figures import Figure, Measure, Ratio, in_turn
from .record import Section

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

__all__ = ["Encode", "default_encode", "encoder_flop", "kernel_section", "matmul_peak", "sd_vae"]

Encode = Callable[[Tensor], Tensor]
"""``[B, 3, H, W]`` in -1..1 in the VAE's dtype and on its device, to latents ``[B, C, h, w]``."""

_LEVELS = 4


def sd_vae(*, decoder: bool = False) -> AutoencoderKL:
    """Return a VAE of Stable Diffusion's architecture with random weights: downscale factor 8, 4 channels."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * _LEVELS,
        up_block_types=("UpDecoderBlock2D",) * _LEVELS,
        layers_per_block=2,
        latent_channels=4,
    )
    if not decoder:
        vae.decoder = None
    return vae.eval().requires_grad_(False)


def default_encode(vae: AutoencoderKL) -> Encode:
    """Return an encoder with diffusers' defaults: eager, without cuDNN's search for faster algorithms.

    The search is a global setting, which a tuned encoder may have switched on; it is off during the call.
    """
    cudnn = torch.backends.cudnn

    @torch.inference_mode()
    def encode(pixels: Tensor) -> Tensor:
        searching, cudnn.benchmark = cudnn.benchmark, False
        try:
            latents: Tensor = vae.encode(pixels).latent_dist.mode()
            return latents
        finally:
            cudnn.benchmark = searching

    return encode


def encoder_flop(vae: AutoencoderKL, side: int) -> int:
    """Return the floating-point operations of encoding one square image: two per multiplication and addition.

    Only convolutions, matrix products and attention count. The function computes on the meta device.
    """
    shapes = copy.deepcopy(vae).to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shapes.encode(torch.empty(1, 3, side, side, device="meta", dtype=vae.dtype)).latent_dist.mode()
    return int(counter.get_total_flops())


def matmul_peak(device: torch.device, dtype: torch.dtype, window_s: float) -> float:
    """Return the TFLOP/s of one large square matrix product: the practical peak, below that of the data sheet."""
    side = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / _seconds_per_call(lambda: left @ right, device, window_s) / 1e12


def kernel_section(
    tune: Callable[[AutoencoderKL], Encode],
    *,
    device: str,
    sides: Sequence[int],
    batches: Sequence[int] = (1, 2, 4, 8, 16),
    repeats: int = 5,
    window_s: float = 0.5,
    vae: AutoencoderKL | None = None,
) -> Section:
    """Compare ``tune`` with diffusers' default, each at its fastest batch size, on square images.

    Both compute in bfloat16 on CUDA and in float32 on the CPU. A share is of the best sample of the matrix product,
    which is measured in the same turns.

    Args:
        tune: returns an encoder for a VAE; gets a copy of ``vae`` on the device.
        device: ``"cuda"`` or ``"cpu"``.
        sides: sides of the images, in pixels.
        batches: batch sizes to try.
        repeats: samples of each figure.
        window_s: a sample is the mean of the calls that fill this many seconds, at least one.
        vae: by default `sd_vae`.
    """
    where = torch.device(device)
    dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
    vae = sd_vae() if vae is None else vae
    encoders = {
        "diffusers' default": default_encode(copy.deepcopy(vae).to(where, dtype)),
        "tuned": tune(copy.deepcopy(vae).to(where, dtype)),
    }
    figures: list[Figure] = []
    ratios: list[Ratio] = []
    for side in sides:
        peak_name = f"matrix product, beside {side} x {side}"
        measures: dict[str, Measure] = {peak_name: partial(matmul_peak, where, dtype, window_s)}
        for name, encode in encoders.items():
            rates = {count: partial(_rate, encode, (count, 3, side, side), where, dtype, window_s) for count in batches}
            best = _fastest(rates)
            measures[f"{name}, {side} x {side}, batch {best}"] = rates[best]
        samples = in_turn("images/s", measures, repeats)
        peak = Figure(peak_name, "TFLOP/s", samples.pop(peak_name).samples)
        default, tuned = samples.values()
        percent = 100 * encoder_flop(vae, side) / 1e12 / max(peak.samples)
        shares = [
            Figure(f"{figure.name}, share of the peak", "%", tuple(percent * rate for rate in figure.samples))
            for figure in (default, tuned)
        ]
        figures += [default, tuned, peak, *shares]
        ratios.append(Ratio(f"tuned over default, {side} x {side}", tuned, default))
    text = (
        f"Images a second of the encoder alone, {str(dtype).removeprefix('torch.')} on {device}, each at the fastest "
        f"batch size of {', '.join(map(str, batches))}. The share is of the best sample of the matrix product."
    )
    return Section("Kernel rate", text, tuple(figures), tuple(ratios))


def _fastest(rates: Mapping[int, Measure]) -> int:
    """Return the batch size with the highest rate, by one sample each; skips those that do not fit into memory.

    Raises:
        torch.OutOfMemoryError: the smallest batch does not fit.
    """
    found: dict[int, float] = {}
    for count in sorted(rates):
        try:
            found[count] = rates[count]()
        except torch.OutOfMemoryError:
            if not found:
                raise
            break
        finally:
            torch.cuda.empty_cache()
    return max(found, key=found.__getitem__)


def _rate(
    encode: Encode, shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype, window_s: float
) -> float:
    """Return images a second."""
    pixels = torch.rand(shape, device=device, dtype=dtype) * 2 - 1
    return shape[0] / _seconds_per_call(lambda: encode(pixels), device, window_s)


def _seconds_per_call(call: Callable[[], object], device: torch.device, window_s: float) -> float:
    """Return the mean of the calls that fill ``window_s``; on CUDA after a first one that may compile or allocate."""

    def seconds(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    if device.type == "cuda":
        seconds(1)
    once = seconds(1)
    calls = max(1, math.ceil(window_s / once))
    return once if calls == 1 else seconds(calls) / calls
