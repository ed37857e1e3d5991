"""How fast the VAE's encoder can be on this hardware: images a second on resident tensors, as a share of its peak.

The VAE has the size of Stable Diffusion's and random weights; what it computes takes as long as with any others.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from .figures import Figure, Measure, Ratio, in_turn
from .record import Section

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

__all__ = ["EncodeResident", "Tune", "default_encode", "encoder_flop", "kernel_section", "matmul_peak", "sd_vae"]

EncodeResident = Callable[[Tensor], Tensor]
"""``[B, 3, H, W]`` in -1..1 in the VAE's type, on its device, to latents ``[B, C, h, w]``."""

Tune = Callable[["AutoencoderKL"], EncodeResident]

_LEVELS = 4


@dataclass(frozen=True)
class _Bench:
    """One device, one type, two ways to encode."""

    device: torch.device
    dtype: torch.dtype
    window_s: float
    ways: dict[str, EncodeResident]
    flop: Callable[[int], int]


def sd_vae(*, decoder: bool = False) -> AutoencoderKL:
    """Build Stable Diffusion's VAE, ratio 8 and 4 channels, with random weights; its decoder if it is needed."""
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


def default_encode(vae: AutoencoderKL) -> EncodeResident:
    """Encode as diffusers does when nobody changes anything: eager, and with cuDNN's own choice of algorithms.

    A search for faster ones that a tuned way has switched on for the whole process is off during the call.
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
    """Count the floating-point operations of encoding one square image: two for a multiplication with its addition.

    Convolutions, matrix products and attention count, and nothing else. Nothing is computed.
    """
    shapes = copy.deepcopy(vae).to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shapes.encode(torch.empty(1, 3, side, side, device="meta", dtype=vae.dtype)).latent_dist.mode()
    return int(counter.get_total_flops())


def matmul_peak(device: torch.device, dtype: torch.dtype, window_s: float) -> float:
    """TFLOP/s of one large square matrix product: what the hardware gives in practice, below its data sheet's."""
    side = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = _seconds_a_call(lambda: left @ right, device, window_s)
    return float(2 * side**3 / seconds / 1e12)


def kernel_section(
    tune: Tune,
    *,
    device: str,
    sides: Sequence[int],
    batches: Sequence[int] = (1, 2, 4, 8, 16),
    repeats: int = 5,
    window_s: float = 0.5,
    vae: AutoencoderKL | None = None,
) -> Section:
    """Compare ``tune`` with diffusers' default, each at the fastest of ``batches``, on square images of ``sides``.

    Both compute in bfloat16 on CUDA and in float32 on the CPU, each on a copy of ``vae`` (`sd_vae` unless given). The
    matrix product's peak is measured in the same turns; a share is of its best sample. Each sample is the mean over as
    many calls as fill ``window_s``, and of one at least.
    """
    where = torch.device(device)
    dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
    vae = sd_vae() if vae is None else vae
    ways = {
        "diffusers' default": default_encode(copy.deepcopy(vae).to(where, dtype)),
        "tuned": tune(copy.deepcopy(vae).to(where, dtype)),
    }
    bench = _Bench(where, dtype, window_s, ways, lambda side: encoder_flop(vae, side))
    figures: list[Figure] = []
    ratios: list[Ratio] = []
    for side in sides:
        of_side, ratio = _rates(bench, side, batches, repeats)
        figures += of_side
        ratios.append(ratio)
    text = (
        f"Images a second of the encoder alone, {str(dtype).removeprefix('torch.')} on {device}, each way at the "
        f"fastest of the batches {', '.join(map(str, batches))}; the share is of the matrix product's best sample."
    )
    return Section("Kernel rate", text, tuple(figures), tuple(ratios))


def _rates(bench: _Bench, side: int, batches: Sequence[int], repeats: int) -> tuple[list[Figure], Ratio]:
    """The rate of each way, the peak, and the shares of it, for one size."""
    peak_name = f"matrix product, beside {side} x {side}"
    measures: dict[str, Measure] = {peak_name: lambda: matmul_peak(bench.device, bench.dtype, bench.window_s)}
    for name, encode in bench.ways.items():
        count = _best_batch(bench, encode, side, batches)
        measures[f"{name}, {side} x {side}, batch {count}"] = partial(_rate, bench, encode, side, count)
    samples = in_turn("images/s", measures, repeats)
    peak = Figure(peak_name, "TFLOP/s", samples.pop(peak_name).samples)
    default, tuned = samples.values()
    tflop = bench.flop(side) / 1e12
    shares = [_share(rate, tflop, peak) for rate in (default, tuned)]
    return [default, tuned, peak, *shares], Ratio(f"tuned over default, {side} x {side}", tuned, default)


def _share(rate: Figure, tflop: float, peak: Figure) -> Figure:
    percent = tuple(100 * tflop * sample / peak.maximum for sample in rate.samples)
    return Figure(f"{rate.name}, share of the peak", "%", percent)


def _best_batch(bench: _Bench, encode: EncodeResident, side: int, batches: Sequence[int]) -> int:
    """The batch with the highest rate, by one sample of each after a first call; what memory cannot hold is out.

    Raises:
        torch.OutOfMemoryError: not even the smallest batch fits.
    """
    rates: dict[int, float] = {}
    for count in sorted(batches):
        try:
            rates[count] = _rate(bench, encode, side, count)
        except torch.OutOfMemoryError:
            if not rates:
                raise
            break
        finally:
            if bench.device.type == "cuda":
                torch.cuda.empty_cache()
    return max(rates, key=rates.__getitem__)


def _rate(bench: _Bench, encode: EncodeResident, side: int, count: int) -> float:
    """Images a second."""
    pixels = torch.rand(count, 3, side, side, device=bench.device, dtype=bench.dtype) * 2 - 1
    return count / _seconds_a_call(lambda: encode(pixels), bench.device, bench.window_s)


def _seconds_a_call(call: Callable[[], object], device: torch.device, window_s: float) -> float:
    """Mean over as many calls as fill ``window_s``, after a first one that may compile or allocate."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            call()
            once = _cuda_seconds(call, 1)
            calls = max(1, math.ceil(window_s / once))
            return _cuda_seconds(call, calls) / calls
    once = _cpu_seconds(call, 1)
    calls = max(1, math.ceil(window_s / once))
    return once if calls == 1 else _cpu_seconds(call, calls) / calls


def _cuda_seconds(call: Callable[[], object], calls: int) -> float:
    """Between two events on the current stream, with nothing else in flight before."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        call()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1000


def _cpu_seconds(call: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - start
