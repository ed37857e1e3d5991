"""Encoding within the device's memory: on out-of-memory, halve the batch; if one image does not fit, use tiles."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from inpaint_encode.vae.encode import Posterior, posterior, tiled_posterior
from inpaint_encode.vae.registry import crop_multiple

from .batch import CPU_BATCH_PIXELS, MAX_BATCH_SIZE, OutOfMemory, is_out_of_memory
from .machine import machine_memory

if TYPE_CHECKING:
    from diffusers import ModelMixin

MEMORY_FRACTION = 0.8
"""Share of the free memory that an estimate may fill; fragmentation and other processes need the rest."""

_CPU_TENSORS = 5
"""Tensors of the encoder's first layers that a pass on a CPU holds at a time, as measured."""

_MEASURED_SIDE = 512
"""Side in pixels of the image by which memory is measured."""


class EncodeResult(NamedTuple):
    """The posterior of a batch."""

    posterior: Posterior
    tiled: list[bool]
    """By row: whether it was encoded in tiles."""
    steps: int
    """How often memory ran out."""


class _Strategy(NamedTuple):
    """How many images to encode at once, and whether in tiles."""

    images: int
    tiled: bool


class OomAdaptiveVae:
    """A VAE that halves its batch on out-of-memory and remembers, for each image size, what fitted.

    If one image does not fit, it is encoded in tiles, unless the caller forbids them. Not thread-safe.

    Args:
        vae: on its device, in its compute dtype.
        tile_size: side of a tile in pixels.
    """

    def __init__(self, vae: ModelMixin, tile_size: int) -> None:
        self._vae = vae
        self._multiple = crop_multiple(vae)
        self._tile_size = tile_size
        self._strategies: dict[tuple[int, int, bool | None], _Strategy] = {}
        self._pixels: float = CPU_BATCH_PIXELS

    def encode(self, pixels: Tensor, tile: bool | None) -> EncodeResult:
        """Encode images, in several passes if necessary.

        Args:
            pixels: float32 ``[B, H, W, 3]`` in 0..1, on the VAE's device.
            tile: whether to encode images larger than a tile in tiles; None: only on out-of-memory.

        Raises:
            OutOfMemory: one image, or its tiles, does not fit.
            RuntimeError: any other error of the device or the model.
        """
        count, height, width = pixels.shape[:3]
        larger = max(height, width) > self._tile_size
        key = height, width, tile
        parts: list[Posterior] = []
        tiled: list[bool] = []
        steps = 0
        while len(tiled) < count:
            strategy = self._strategies.get(key)
            if strategy is None:
                strategy = _Strategy(count, tiled=bool(tile) and larger)
                if not strategy.tiled and not self._fits_in_host_memory(pixels):
                    strategy = _smaller(strategy._replace(images=1), may_tile=larger and tile is None, steps=0)
            part = pixels[len(tiled) : len(tiled) + strategy.images]
            found = self._attempt(part, tiled=strategy.tiled)
            if found is None:
                steps += 1
                may_tile = larger and tile is None
                self._strategies[key] = _smaller(strategy._replace(images=len(part)), may_tile=may_tile, steps=steps)
            else:
                parts.append(found)
                tiled += [strategy.tiled] * len(part)
        if len(parts) == 1:
            return EncodeResult(parts[0], tiled, steps)
        means, logvars = zip(*parts, strict=True)
        joined = Posterior(torch.cat(means), None if logvars[0] is None else torch.cat(logvars))
        return EncodeResult(joined, tiled, steps)

    def batch_size(self, height: int, width: int, tile: bool | None) -> int:
        """Return how many images of a size to pass: what fitted before, else an estimate from the free memory."""
        if strategy := self._strategies.get((height, width, tile)):
            return strategy.images
        sides = [min(side, self._tile_size) if tile else side for side in (height, width)]
        return max(1, int(min(MAX_BATCH_SIZE, self._pixels / (sides[0] * sides[1]))))

    def measure(self) -> None:
        """Measure on an idle GPU how many pixels fit; on a CPU `CPU_BATCH_PIXELS` stays."""
        device = next(self._vae.parameters()).device
        if device.type == "cuda":
            needed = bytes_per_pixel(self._vae, device)
            self._pixels = MEMORY_FRACTION * torch.cuda.mem_get_info(device)[0] / needed

    def _fits_in_host_memory(self, pixels: Tensor) -> bool:
        """Return whether a CPU can encode an image of this size: there, one that does not fit kills its process."""
        first = getattr(getattr(self._vae, "encoder", None), "conv_in", None)
        if pixels.is_cuda or not isinstance(first, nn.Module):
            return True
        weight = next(first.parameters())
        needed = _CPU_TENSORS * weight.shape[0] * weight.element_size() * pixels.shape[1] * pixels.shape[2]
        return needed < MEMORY_FRACTION * machine_memory()

    def _attempt(self, pixels: Tensor, *, tiled: bool) -> Posterior | None:
        """Return the posterior, or None if memory ran out; then the memory is freed."""
        try:
            if tiled:
                return tiled_posterior(self._vae, pixels, self._tile_size, self._multiple)
            return posterior(self._vae, pixels)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # The error is gone only here, and with it the frames that held intermediate results.
        _clear_cache(self._vae)
        if pixels.is_cuda:
            torch.cuda.synchronize(pixels.device)
            torch.cuda.empty_cache()
        return None


class Float32FallbackVae:
    """The VAE in float32 on the host; it moves to the device for the few batches that overflow.

    Args:
        vae: in float32, with the weights as loaded.
        device: where to encode.
        tile_size: as for `OomAdaptiveVae`.
    """

    def __init__(self, vae: ModelMixin, device: torch.device, tile_size: int) -> None:
        self._vae, self._device = vae, device
        self._adaptive = OomAdaptiveVae(vae, tile_size)

    def encode(self, pixels: Tensor, tile: bool | None) -> EncodeResult:
        """Encode as `OomAdaptiveVae.encode` does."""
        try:
            self._vae.to(self._device)
            return self._adaptive.encode(pixels, tile)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(
                "the latent of this image overflows in --dtype, and device memory is too small for the float32 weights",
                steps=1,
            ) from error
        finally:
            _clear_cache(self._vae)
            self._vae.to("cpu")


def cast_copy(vae: ModelMixin, device: torch.device, dtype: torch.dtype) -> ModelMixin:
    """Copy a VAE to ``device`` in ``dtype``, without a second float32 copy on the way."""
    cast: dict[int, Tensor] = {}
    for tensor in (*vae.parameters(), *vae.buffers()):
        moved = tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
        cast[id(tensor)] = nn.Parameter(moved, requires_grad=False) if isinstance(tensor, nn.Parameter) else moved
    return copy.deepcopy(vae, cast)


def bytes_per_pixel(vae: ModelMixin, device: torch.device) -> float:
    """Measure the peak memory of encoding on a GPU, without the weights; infinity if one image does not fit."""
    pixels = torch.full((1, _MEASURED_SIDE, _MEASURED_SIDE, 3), 0.5, device=device)
    try:
        posterior(vae, pixels)  # cuDNN's search may need more memory than the algorithm that it chooses
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        posterior(vae, pixels)
        return (torch.cuda.max_memory_allocated(device) - before) / _MEASURED_SIDE**2
    except torch.OutOfMemoryError:
        _clear_cache(vae)
        return float("inf")
    finally:
        torch.cuda.empty_cache()


def _clear_cache(vae: ModelMixin) -> None:
    """Free the frames that a video VAE caches; it does so itself only when encoding succeeds."""
    if hasattr(vae, "clear_cache"):
        vae.clear_cache()


def _smaller(strategy: _Strategy, *, may_tile: bool, steps: int) -> _Strategy:
    """Return what to try after ``strategy`` ran out of memory.

    Raises:
        OutOfMemory: nothing is left to try.
    """
    if strategy.images > 1:
        return _Strategy(strategy.images // 2, strategy.tiled)
    if may_tile and not strategy.tiled:
        return _Strategy(1, tiled=True)
    raise OutOfMemory("one image does not fit into the memory; use --tile, or a smaller --tile-size", steps=steps)
