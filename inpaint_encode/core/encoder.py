"""Batches of 8-bit pixels and binary masks become latents on one device; what a worker does, without Ray."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inpaint_encode.metadata import RowMetadata
from inpaint_encode.settings import VaeSource
from inpaint_encode.vae.encode import compute_dtype, posterior, warm_up
from inpaint_encode.vae.latent_values import latent_values
from inpaint_encode.vae.load import load_verified_vae
from inpaint_encode.vae.properties import crop_multiple, latent_form
from inpaint_encode.vae.registry import family_of

from .batch import Batch, Done, EncodedBatch, Launched, OutOfMemory
from .compiled import tuned
from .out_of_memory import Fitted, FittingVae, VisitingVae, cast_copy
from .transform import grow_mask, mask_of_latent, neutralise

if TYPE_CHECKING:
    from diffusers import ModelMixin

__all__ = ["BatchEncoder"]


class BatchEncoder:
    """One warmed-up VAE on one device, in the type it computes in.

    Its float32 weights stay on the host, for rows that overflow in that type.

    Args:
        vae: in float32 on the CPU; it is this object's from here on.
        metadata: of the rows.
        device: where to compute.
        compiled: whether to compile, see `inpaint_encode.core.compiled.tuned`.
    """

    def __init__(
        self,
        vae: ModelMixin,
        metadata: RowMetadata,
        device: torch.device,
        *,
        compiled: bool,
    ) -> None:
        _set_up_torch(device, deterministic=metadata.deterministic)
        dtype = compute_dtype(metadata.compute_dtype, device)
        self.precision = str(dtype).removeprefix("torch.")
        self._metadata = metadata
        self._device = device
        self._vae_metadata = replace(metadata.vae, latent_form=latent_form(vae))
        on_device = vae.to(device) if dtype == torch.float32 else cast_copy(vae, device, dtype)
        if family_of(vae).compilable:
            on_device = tuned(on_device, deterministic=metadata.deterministic, compiled=compiled)
        self._fast = FittingVae(on_device, metadata.tile_size)
        self._exact = None if dtype == torch.float32 else VisitingVae(vae, device, metadata.tile_size)
        # A GPU divides by a plain number by multiplying with its inverse, which is off by a bit: by a tensor it is not.
        self._full_scale = torch.tensor([255.0], device=device)
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        # One thread computes whoever asks: torch keeps a team of CPU threads for each that does, and idle teams spin.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._vae = on_device
        self.check()
        self._thread.submit(self._fast.measure).result()

    @classmethod
    def load(cls, source: VaeSource, metadata: RowMetadata, device: str, *, compiled: bool) -> BatchEncoder:
        """Load the VAE onto ``device`` and check that it is the one in ``metadata``.

        Args:
            source: where the VAE is.
            metadata: of the rows.
            device: ``"cuda"`` or ``"cpu"``.
            compiled: as for the constructor.

        Raises:
            JobFailed: this node has another VAE under the same name, by its weights or its configuration.
        """
        vae, _ = load_verified_vae(source, metadata.vae)
        return cls(vae, metadata, torch.device(device), compiled=compiled)

    def check(self) -> None:
        """Encode a small image once more; raises if the device or the model is not usable any more."""
        self._thread.submit(self._try).result()

    def _try(self) -> None:
        if self._exact is None:
            warm_up(self._vae)
        else:  # whose float32 weights have been warmed up before the job; in this type, even grey may overflow
            side = 2 * crop_multiple(self._vae)
            posterior(self._vae, torch.full((1, side, side, 3), 0.5)).mean.cpu()

    def images_at_once(self, height: int, width: int) -> int:
        """See `inpaint_encode.core.batch.LatentEncoder`."""
        return self._fast.images_at_once(height, width, self._metadata.tiling)

    def launch(self, batch: Batch, *, tile: bool | None = None) -> Launched:
        """Stage a batch and queue it, in the order of the calls: see `inpaint_encode.core.batch.LatentEncoder`.

        Args:
            batch: images of one size.
            tile: whether to tile this batch, in the place of what the settings say.
        """
        work = _Work(batch, self._metadata.tiling if tile is None else tile)
        return _Queued(self._submitted(work, self._fast), work, self._encoded_again)

    def _submitted(self, work: _Work, vae: FittingVae | VisitingVae) -> Future[Launched]:
        start = time.perf_counter()
        pixels, masks = self._staged(work.batch)
        copied = time.perf_counter() - start
        if self._copies is not None:
            return self._thread.submit(self._launch_on_gpu, work, vae, pixels, masks, self._copies)
        return self._thread.submit(self._encode_on_cpu, work, vae, pixels, masks, copied)

    def _encoded_again(self, work: _Work, encoded: EncodedBatch) -> EncodedBatch:
        """Encode the rows that are not finite with the float32 weights, if there are others, and put them in place.

        A row whose values are finite and too large to be stored is left as it is: it would be so again.
        """
        bad = np.flatnonzero(~encoded.finite).tolist()
        if not bad or self._exact is None:
            return encoded
        part = work._replace(batch=work.batch.part(bad))
        try:
            found = self._submitted(part, self._exact).result().result()
        except OutOfMemory as error:
            error.steps, error.not_finite = error.steps + encoded.oom_steps, len(bad)
            raise
        for name in ("samples", "finite", "stored", "original_samples"):
            if (values := getattr(encoded, name)) is not None:
                values[bad] = getattr(found, name)
        tiled = list(encoded.tiled)
        for index, row in enumerate(bad):
            tiled[row] = found.tiled[index]
        seconds = {stage: value + found.seconds[stage] for stage, value in encoded.seconds.items()}
        steps = encoded.oom_steps + found.oom_steps
        return encoded._replace(again=bad, tiled=tiled, seconds=seconds, oom_steps=steps)

    def _encode_on_cpu(
        self, work: _Work, vae: FittingVae | VisitingVae, pixels: Tensor, masks: Tensor, copied: float
    ) -> Launched:
        begun = time.perf_counter()
        outputs = self._encode(work, vae, pixels, masks)
        seconds = {"copy": copied, "encode": time.perf_counter() - begun, "copy_back": 0.0}
        return Done(self._answer(work, outputs, outputs.tensors, seconds))

    def _encode(self, work: _Work, vae: FittingVae | VisitingVae, pixels: Tensor, masks: Tensor) -> _Outputs:
        """``[B, H, W, 3]`` and ``[B, H, W]`` of uint8 to what is stored of them."""
        levels = pixels.float() / self._full_scale
        images = [neutralise(levels, masks.float()), *([levels] if self._metadata.also_original else [])]
        found, *whole = _fitted_alike(vae, images, work.tile)
        posteriors = [one.posterior for one in (found, *whole)]
        kept, *kept_whole = latent_values(posteriors, work.batch.keys, self._metadata, self._vae_metadata)
        tensors = {"samples": kept.values, "finite": kept.finite, "stored": kept.stored}
        for original, finite, stored in kept_whole:
            tensors["original_samples"] = original
            tensors["finite"], tensors["stored"] = tensors["finite"] & finite, tensors["stored"] & stored
        tensors["noise_mask"] = grow_mask(masks, self._metadata.grow_mask_by)
        return _Outputs(tensors, found.tiled, sum(one.steps for one in (found, *whole)))

    def _answer(
        self, work: _Work, outputs: _Outputs, on_host: dict[str, Tensor], seconds: dict[str, float]
    ) -> EncodedBatch:
        latent_mask = self._latent_mask(work.batch, on_host["noise_mask"], on_host["samples"])
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in on_host.items()}
        return EncodedBatch(
            **arrays, seconds=seconds, latent_mask=latent_mask, tiled=outputs.tiled, oom_steps=outputs.steps
        )

    def _latent_mask(self, batch: Batch, grown: Tensor, samples: Tensor) -> NDArray[Any] | None:
        rule = self._metadata.latent_mask
        if rule == "none":
            return None
        masks = grown if rule == "comfyui" else torch.from_numpy(np.stack(list(_unpacked(batch))))
        values: NDArray[Any] = (
            mask_of_latent(masks, samples.shape[-2], samples.shape[-1], rule).to(samples.dtype).numpy()
        )
        return values

    def _staged(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The batch as two tensors on the host, from where a GPU can copy them while it works."""
        shape = len(batch.pixels), batch.height, batch.width
        pixels = torch.empty((*shape, 3), dtype=torch.uint8, pin_memory=self._copies is not None)
        masks = torch.empty(shape, dtype=torch.uint8, pin_memory=self._copies is not None)
        for index, (levels, mask) in enumerate(zip(batch.pixels, _unpacked(batch), strict=True)):
            pixels[index].view(-1).numpy()[:] = levels
            masks[index].numpy()[:] = mask
        return pixels, masks

    def _launch_on_gpu(
        self, work: _Work, vae: FittingVae | VisitingVae, pixels: Tensor, masks: Tensor, copies: torch.cuda.Stream
    ) -> Launched:
        """Queue copies on their stream and all work behind them on the current one; nothing here waits."""
        compute = torch.cuda.current_stream(self._device)
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(5)]  # type: ignore[no-untyped-call]
        with torch.cuda.stream(copies):
            marks[0].record()
            on_device = [tensor.to(self._device, non_blocking=True) for tensor in (pixels, masks)]
            marks[1].record()
        compute.wait_stream(copies)
        for tensor in on_device:
            tensor.record_stream(compute)
        marks[2].record()
        outputs = self._encode(work, vae, *on_device)
        marks[3].record()
        on_host = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            for name, tensor in outputs.tensors.items()
        }
        for name, tensor in outputs.tensors.items():
            on_host[name].copy_(tensor, non_blocking=True)
        marks[4].record()
        return _OnGpu(marks, lambda seconds: self._answer(work, outputs, on_host, seconds))


def _set_up_torch(device: torch.device, *, deterministic: bool) -> None:
    """Set what torch has one of for the whole process: no TF32 and, if ``deterministic``, one way to sum."""
    torch.backends.cudnn.allow_tf32 = False  # on by default, and three digits short of float32
    torch.backends.cuda.matmul.allow_tf32 = False  # off by default, but for what the environment says
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
        if device.type == "cpu":
            torch.set_num_threads(1)  # sums are split by threads, of which a node has more or fewer for each worker


class _Work(NamedTuple):
    """What is asked of the device."""

    batch: Batch
    tile: bool | None


class _Queued(NamedTuple):
    """A batch that waits for the device's thread, or is done by it."""

    launched: Future[Launched]
    work: _Work
    again: Callable[[_Work, EncodedBatch], EncodedBatch]
    """What becomes of rows that are not finite."""

    def result(self) -> EncodedBatch:
        return self.again(self.work, self.launched.result().result())


class _OnGpu(NamedTuple):
    """A batch whose work is queued; ``marks`` are recorded around its copy, its work, and after its copy back."""

    marks: list[torch.cuda.Event]
    answer: Callable[[dict[str, float]], EncodedBatch]
    """From the seconds by stage, once the last mark is passed."""

    def result(self) -> EncodedBatch:
        copied_from, copied, begun, encoded, back = self.marks
        back.synchronize()
        milliseconds = {
            "copy": copied_from.elapsed_time(copied),
            "encode": begun.elapsed_time(encoded),
            "copy_back": encoded.elapsed_time(back),
        }
        return self.answer({stage: value / 1e3 for stage, value in milliseconds.items()})


class _Outputs(NamedTuple):
    """What the device was asked to compute, before it has."""

    tensors: dict[str, Tensor]
    """By their names in `EncodedBatch`."""
    tiled: list[bool]
    steps: int


def _fitted_alike(vae: FittingVae | VisitingVae, images: Sequence[Tensor], tile: bool | None) -> list[Fitted]:
    """Encode a batch and what else there is of it; if memory has rows of only one in tiles, all go in tiles.

    One after the other: memory, and the shapes that graphs are built for, stay as they are.
    """
    found: list[Fitted] = []
    steps = 0
    try:
        for pixels in images:
            found.append(vae.encode(pixels, tile))
            steps += found[-1].steps
        if any(one.tiled != found[0].tiled for one in found):
            found = [vae.encode(pixels, True) for pixels in images]
            found[0] = found[0]._replace(steps=found[0].steps + steps)
    except OutOfMemory as error:
        error.steps += steps
        raise
    return found


def _unpacked(batch: Batch) -> Iterator[NDArray[np.uint8]]:
    for bits in batch.masks:
        yield np.unpackbits(bits, count=batch.height * batch.width).reshape(batch.height, batch.width)
