"""Batches of 8-bit pixels and binary masks become latents on one device."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from inpaint_encode.metadata import RowMetadata
from inpaint_encode.settings import VaeSource
from inpaint_encode.vae.encode import compute_dtype, posterior, warm_up
from inpaint_encode.vae.latents import latent_values
from inpaint_encode.vae.load import load_verified_vae
from inpaint_encode.vae.registry import crop_multiple, latent_form, vae_class_of

from .batch import Batch, EncodedBatch, EncodeFuture, OutOfMemory
from .compiled import optimize_for_gpu
from .out_of_memory import EncodeResult, Float32FallbackVae, OomAdaptiveVae, cast_copy
from .transform import grow_mask, mask_image, resize_to_latent

if TYPE_CHECKING:
    from diffusers import ModelMixin

_Vae = OomAdaptiveVae | Float32FallbackVae


class BatchEncoder:
    """One VAE on one device, in its compute dtype; implements `inpaint_encode.core.batch.LatentEncoder`.

    The float32 weights stay on the host, for rows that overflow in the compute dtype.

    Args:
        vae: in float32 on the CPU; the encoder takes it over.
        metadata: of the rows.
        device: where to compute.
        compiled: whether to compile, see `inpaint_encode.core.compiled.optimize_for_gpu`.
    """

    def __init__(self, vae: ModelMixin, metadata: RowMetadata, device: torch.device, *, compiled: bool) -> None:
        _configure_torch(device, deterministic=metadata.deterministic)
        dtype = compute_dtype(metadata.compute_dtype, device)
        self.precision = str(dtype).removeprefix("torch.")
        self._metadata, self._tiling = metadata, metadata.tiling
        self._device = device
        self._vae_metadata = replace(metadata.vae, latent_form=latent_form(vae))
        on_device = vae.to(device) if dtype == torch.float32 else cast_copy(vae, device, dtype)
        if vae_class_of(vae).compilable:
            on_device = optimize_for_gpu(on_device, deterministic=metadata.deterministic, compiled=compiled)
        self._compute_vae = OomAdaptiveVae(on_device, metadata.tile_size)
        self._float32_vae = None if dtype == torch.float32 else Float32FallbackVae(vae, device, metadata.tile_size)
        # A GPU divides by a Python number by multiplying with its inverse, which is off by a bit; by a tensor it is
        # not.
        self._full_scale = torch.tensor([255.0], device=device)
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        # All batches are computed in one thread: torch keeps a team of CPU threads per calling thread, and idle teams
        # spin.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._vae = on_device
        self.check()
        self._thread.submit(self._compute_vae.measure).result()

    @classmethod
    def load(cls, source: VaeSource, metadata: RowMetadata, device: str, *, compiled: bool) -> BatchEncoder:
        """Load the VAE onto ``device`` and check that it is the one in ``metadata``.

        Args:
            source: where the VAE is.
            metadata: of the rows.
            device: ``"cuda"`` or ``"cpu"``.
            compiled: as for the constructor.

        Raises:
            JobFailed: this node has other weights or another configuration under the same name.
        """
        vae, _ = load_verified_vae(source, metadata.vae)
        return cls(vae, metadata, torch.device(device), compiled=compiled)

    def check(self) -> None:
        """Encode a small image; raises if the device or the model is not usable any more."""
        self._thread.submit(self._try).result()

    def _try(self) -> None:
        if self._float32_vae is None:
            warm_up(self._vae)
        else:  # the float32 weights were checked before the job; in this dtype even gray may overflow
            side = 2 * crop_multiple(self._vae)
            posterior(self._vae, torch.full((1, side, side, 3), 0.5)).mean.cpu()

    def batch_size(self, height: int, width: int) -> int:
        """See `inpaint_encode.core.batch.LatentEncoder.batch_size`."""
        return self._compute_vae.batch_size(height, width, self._tiling)

    def launch(self, batch: Batch, *, tile: bool | None = None, vae: _Vae | None = None) -> EncodeFuture:
        """Stage the batch in host memory that a GPU can copy from while it works, and queue it for the device.

        See `inpaint_encode.core.batch.LatentEncoder.launch`; ``vae`` is the one to use, by default that in the compute
        dtype.
        """
        tile, vae = self._tiling if tile is None else tile, vae or self._compute_vae
        start = time.perf_counter()
        shape = len(batch.pixels), batch.height, batch.width
        pixels = torch.empty((*shape, 3), dtype=torch.uint8, pin_memory=self._copies is not None)
        masks = torch.empty(shape, dtype=torch.uint8, pin_memory=self._copies is not None)
        for index, (levels, bits) in enumerate(zip(batch.pixels, batch.masks, strict=True)):
            pixels[index].view(-1).numpy()[:] = levels
            masks[index].view(-1).numpy()[:] = np.unpackbits(bits, count=batch.height * batch.width)
        copied = time.perf_counter() - start
        queued: Future[EncodedBatch] | Future[_GpuFuture]
        if self._copies is not None:
            queued = self._thread.submit(self._launch_on_gpu, batch, tile, vae, pixels, masks, self._copies)
        else:
            queued = self._thread.submit(self._encode_on_cpu, batch, tile, vae, pixels, masks, copied)
        return _PendingBatch(self, batch, tile, vae, queued)

    def _encode_on_cpu(
        self, batch: Batch, tile: bool | None, vae: _Vae, pixels: Tensor, masks: Tensor, copied: float
    ) -> EncodedBatch:
        begun = time.perf_counter()
        outputs = self._encode(batch, tile, vae, pixels, masks)
        seconds = {"copy": copied, "encode": time.perf_counter() - begun, "copy_back": 0.0}
        return self._to_arrays(batch, outputs, outputs.tensors, seconds)

    def _encode(self, batch: Batch, tile: bool | None, vae: _Vae, pixels: Tensor, masks: Tensor) -> _Outputs:
        """Encode uint8 ``[B, H, W, 3]`` and ``[B, H, W]`` on the device.

        Images with ``also_original`` are encoded one after the other, so that memory and compiled shapes stay the same.
        If memory allows only one of the two without tiles, both are encoded in tiles.
        """
        levels = pixels.float() / self._full_scale
        images = [mask_image(levels, masks.float()), *([levels] if self._metadata.also_original else [])]
        found: list[EncodeResult] = []
        steps = 0
        try:
            for image in images:
                found.append(vae.encode(image, tile))
                steps += found[-1].steps
            if any(one.tiled != found[0].tiled for one in found):
                found = [vae.encode(image, True) for image in images]
                steps += sum(one.steps for one in found)
        except OutOfMemory as error:
            error.steps += steps
            raise
        posteriors = [one.posterior for one in found]
        latents, *originals = latent_values(posteriors, batch.keys, self._metadata, self._vae_metadata)
        tensors = {"samples": latents.values, "finite": latents.finite, "fits_stored_dtype": latents.fits_stored_dtype}
        for original, finite, fits_stored_dtype in originals:
            tensors["original_samples"] = original
            tensors["finite"] = tensors["finite"] & finite
            tensors["fits_stored_dtype"] = tensors["fits_stored_dtype"] & fits_stored_dtype
        tensors["noise_mask"] = grow_mask(masks, self._metadata.grow_mask_by)
        return _Outputs(tensors, found[0].tiled, steps)

    def _to_arrays(
        self, batch: Batch, outputs: _Outputs, on_host: dict[str, Tensor], seconds: dict[str, float]
    ) -> EncodedBatch:
        """Return the outputs as arrays, with the mask at the latent's size if the rows have one."""
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in on_host.items()}
        if (rule := self._metadata.latent_mask) != "none":
            masks, samples = on_host["noise_mask"], on_host["samples"]
            if rule == "diffusers":
                bits = [np.unpackbits(one, count=batch.height * batch.width) for one in batch.masks]
                masks = torch.from_numpy(np.stack(bits).reshape(masks.shape))
            arrays["latent_mask"] = resize_to_latent(masks, samples.shape[-2], samples.shape[-1], rule)
            arrays["latent_mask"] = arrays["latent_mask"].to(samples.dtype).numpy()
        return EncodedBatch(**arrays, seconds=seconds, tiled=outputs.tiled, oom_steps=outputs.steps)

    def _launch_on_gpu(
        self, batch: Batch, tile: bool | None, vae: _Vae, pixels: Tensor, masks: Tensor, copies: torch.cuda.Stream
    ) -> _GpuFuture:
        """Queue the copies on their own stream and the work behind them on the current one; does not wait."""
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
        outputs = self._encode(batch, tile, vae, *on_device)
        marks[3].record()
        on_host = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            for name, tensor in outputs.tensors.items()
        }
        for name, tensor in outputs.tensors.items():
            on_host[name].copy_(tensor, non_blocking=True)
        marks[4].record()
        return _GpuFuture(marks, lambda seconds: self._to_arrays(batch, outputs, on_host, seconds))

    def _encode_in_float32(self, batch: Batch, tile: bool | None, encoded: EncodedBatch) -> EncodedBatch:
        """Encode the rows that are not finite with the float32 weights and return the batch with their values.

        A row that is finite but too large for the stored type stays: float32 would not change that.
        """
        assert self._float32_vae is not None
        bad = np.flatnonzero(~encoded.finite).tolist()
        try:
            found = self.launch(batch.part(bad), tile=tile, vae=self._float32_vae).result()
        except OutOfMemory as error:
            error.steps, error.not_finite = error.steps + encoded.oom_steps, len(bad)
            raise
        for name in ("samples", "finite", "fits_stored_dtype", "original_samples"):
            if (values := getattr(encoded, name)) is not None:
                values[bad] = getattr(found, name)
        tiled = list(encoded.tiled)
        for index, row in enumerate(bad):
            tiled[row] = found.tiled[index]
        seconds = {stage: value + found.seconds[stage] for stage, value in encoded.seconds.items()}
        steps = encoded.oom_steps + found.oom_steps
        return encoded._replace(in_float32=bad, tiled=tiled, seconds=seconds, oom_steps=steps)


def _configure_torch(device: torch.device, *, deterministic: bool) -> None:
    """Set torch's process-wide options: no TF32 and, if ``deterministic``, one order of summation."""
    torch.backends.cudnn.allow_tf32 = False  # the default is True, and TF32 has three digits less than float32
    torch.backends.cuda.matmul.allow_tf32 = False
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
        if device.type == "cpu":
            torch.set_num_threads(1)  # sums depend on the number of threads, which depends on the node


class _Outputs(NamedTuple):
    """Results on the device; on a GPU they may not be computed yet."""

    tensors: dict[str, Tensor]
    """By the names of `EncodedBatch`."""
    tiled: list[bool]
    steps: int


class _PendingBatch(NamedTuple):
    """A batch in the queue of the device's thread."""

    encoder: BatchEncoder
    batch: Batch
    tile: bool | None
    vae: _Vae
    queued: Future[EncodedBatch] | Future[_GpuFuture]

    def result(self) -> EncodedBatch:
        launched = self.queued.result()
        encoded = launched.result() if isinstance(launched, _GpuFuture) else launched
        if encoded.finite.all() or self.encoder._float32_vae in (None, self.vae):
            return encoded
        return self.encoder._encode_in_float32(self.batch, self.tile, encoded)


class _GpuFuture(NamedTuple):
    """A batch whose work is queued on the GPU; ``marks`` are recorded around its copy, its work and its copy back."""

    marks: list[torch.cuda.Event]
    to_arrays: Callable[[dict[str, float]], EncodedBatch]
    """Takes the seconds by stage once the last mark is passed."""

    def result(self) -> EncodedBatch:
        copied_from, copied, begun, encoded, back = self.marks
        back.synchronize()
        milliseconds = {
            "copy": copied_from.elapsed_time(copied),
            "encode": begun.elapsed_time(encoded),
            "copy_back": encoded.elapsed_time(back),
        }
        return self.to_arrays({stage: value / 1e3 for stage, value in milliseconds.items()})
