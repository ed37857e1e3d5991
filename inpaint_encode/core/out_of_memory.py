"""As many images of a size at once as memory holds: fewer after it ran out, and tiles where not even one fits."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from inpaint_encode.vae.encode import Posterior, posterior
from inpaint_encode.vae.properties import crop_multiple
from inpaint_encode.vae.tiles import tiled_posterior

from .batch import CPU_PIXELS, OutOfMemory, images_at_once, is_out_of_memory

if TYPE_CHECKING:
    from diffusers import ModelMixin

__all__ = ["Fitted", "FittingVae", "VisitingVae", "bytes_per_pixel", "cast_copy"]

_SHARE = 0.8
"""Of the free memory that an estimate may fill: it knows nothing of how memory is split up, nor of the neighbours."""

_MEASURED = 512
"""Side in pixels of the image by which memory is measured."""


class Fitted(NamedTuple):
    """A batch that went through."""

    posterior: Posterior
    tiled: list[bool]
    """By row: whether it went in tiles."""
    steps: int
    """How often memory ran out on the way."""


class _Way(NamedTuple):
    images: int
    """At once."""
    tiled: bool


class FittingVae:
    """A VAE that is never given more at once than went through before.

    When memory runs out the images at once are halved, and what worked is remembered for their size; where one image
    is too much, it goes in tiles, if they are allowed. For one thread at a time.

    Args:
        vae: on its device, in its type.
        tile_size: side of a tile in pixels.
    """

    def __init__(self, vae: ModelMixin, tile_size: int) -> None:
        self._vae = vae
        self._multiple = crop_multiple(vae)
        self._tile_size = tile_size
        self._ways: dict[tuple[int, int, bool | None], _Way] = {}
        self._pixels: float = CPU_PIXELS

    def encode(self, pixels: Tensor, tile: bool | None) -> Fitted:
        """Encode float32 ``[B, H, W, 3]`` in 0..1, on the VAE's device.

        Args:
            pixels: the images.
            tile: whether images larger than a tile go in tiles; None is where not even one image fits.

        Raises:
            OutOfMemory: not even one image, or its tiles, fits.
            RuntimeError: whatever else the device or the model says.
        """
        count, height, width = pixels.shape[:3]
        larger = max(height, width) > self._tile_size
        key = height, width, tile
        parts: list[Posterior] = []
        tiled: list[bool] = []
        steps = 0
        while len(tiled) < count:
            way = self._ways.get(key) or _Way(count, tiled=bool(tile) and larger)
            part = pixels[len(tiled) : len(tiled) + way.images]
            found = self._attempt(part, way)
            if found is None:
                steps += 1
                self._ways[key] = _lower(way._replace(images=len(part)), larger and tile is None, steps)
            else:
                parts.append(found)
                tiled += [way.tiled] * len(part)
        return Fitted(_joined(parts), tiled, steps)

    def images_at_once(self, height: int, width: int, tile: bool | None) -> int:
        """How many images of a size to give it: what worked before, else an estimate that stays below free memory."""
        if way := self._ways.get((height, width, tile)):
            return way.images
        sides = [min(side, self._tile_size) if tile else side for side in (height, width)]
        return images_at_once(sides[0], sides[1], self._pixels)

    def measure(self) -> None:
        """On a GPU that nothing runs on, find out how many pixels fit; on a CPU `CPU_PIXELS` holds."""
        device = next(self._vae.parameters()).device
        if device.type == "cuda":
            needed = bytes_per_pixel(self._vae, device)
            self._pixels = _SHARE * torch.cuda.mem_get_info(device)[0] / needed

    def _attempt(self, pixels: Tensor, way: _Way) -> Posterior | None:
        """What the VAE says of ``pixels``, or None if memory ran out and was given back."""
        try:
            if way.tiled:
                return tiled_posterior(self._vae, pixels, self._tile_size, self._multiple)
            return posterior(self._vae, pixels)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Only here is the error gone, and with it the frames that held what was computed so far.
        _clear_cache(self._vae)
        if pixels.is_cuda:
            torch.cuda.synchronize(pixels.device)
            torch.cuda.empty_cache()
        return None


class VisitingVae:
    """A VAE that lives on the host in float32 and comes to the device for a batch that overflowed, as few as they are.

    Args:
        vae: in float32, with the weights that were loaded.
        device: where it goes.
        tile_size: as for `FittingVae`.
    """

    def __init__(self, vae: ModelMixin, device: torch.device, tile_size: int) -> None:
        self._vae, self._device = vae, device
        self._fitting = FittingVae(vae, tile_size)

    def encode(self, pixels: Tensor, tile: bool | None) -> Fitted:
        """See `FittingVae.encode`."""
        try:
            self._vae.to(self._device)
            return self._fitting.encode(pixels, tile)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(
                "the VAE's float32 weights, which this image needs, are more than memory holds", steps=1
            ) from error
        finally:
            _clear_cache(self._vae)
            self._vae.to("cpu")


def cast_copy(vae: ModelMixin, device: torch.device, dtype: torch.dtype) -> ModelMixin:
    """Copy a VAE to ``device`` and into ``dtype``, with no second copy in float32 on the way."""
    cast: dict[int, Tensor] = {}
    for tensor in (*vae.parameters(), *vae.buffers()):
        moved = tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
        cast[id(tensor)] = nn.Parameter(moved, requires_grad=False) if isinstance(tensor, nn.Parameter) else moved
    return copy.deepcopy(vae, cast)


def bytes_per_pixel(vae: ModelMixin, device: torch.device) -> float:
    """Measure what encoding takes on a GPU at its worst, over the weights; infinity if one image is too much."""
    pixels = torch.full((1, _MEASURED, _MEASURED, 3), 0.5, device=device)
    try:
        posterior(vae, pixels)  # algorithms that are tried once may take more than those that are chosen
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        posterior(vae, pixels)
        return (torch.cuda.max_memory_allocated(device) - before) / _MEASURED**2
    except torch.OutOfMemoryError:
        _clear_cache(vae)
        return float("inf")
    finally:
        torch.cuda.empty_cache()


def _clear_cache(vae: ModelMixin) -> None:
    """Let go of what a video VAE keeps of a frame for the next one; it does so itself only at the end."""
    if hasattr(vae, "clear_cache"):
        vae.clear_cache()


def _lower(way: _Way, may_tile: bool, steps: int) -> _Way:
    """The next thing to try after ``way`` was too much, the last of so many steps."""
    if way.images > 1:
        return _Way(way.images // 2, way.tiled)
    if may_tile and not way.tiled:
        return _Way(1, tiled=True)
    raise OutOfMemory("one image is more than memory holds; --tile, or a smaller --tile-size, needs less", steps=steps)


def _joined(parts: list[Posterior]) -> Posterior:
    if len(parts) == 1:
        return parts[0]
    means, logvars = zip(*parts, strict=True)
    return Posterior(torch.cat(means), None if logvars[0] is None else torch.cat(logvars))
