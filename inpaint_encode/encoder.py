"""Batches of 8-bit pixels and binary masks become latents on one device; what a worker does, without Ray."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .batch import Batch, EncodedBatch, Launched
from .errors import JobFailed
from .settings import RowSettings, VaeSource
from .transform import grow_mask, neutralise
from .tune import tuned
from .vae import compute_dtype, family_of, load_vae, posterior, warm_up, weights_sha256

if TYPE_CHECKING:
    from diffusers import ModelMixin

__all__ = ["BatchEncoder"]


class BatchEncoder:
    """One warmed-up VAE on one device, in the type it computes in."""

    def __init__(self, vae: ModelMixin, settings: RowSettings, device: torch.device, *, compiled: bool) -> None:
        if settings.deterministic:
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
        dtype = compute_dtype(settings.dtype, device, vae.config)
        if dtype == torch.float32:
            torch.backends.cudnn.allow_tf32 = False  # on by default, and three digits short of float32
        self.precision = str(dtype).removeprefix("torch.")
        vae = vae.to(device, dtype)
        graphs = family_of(vae).graphs
        self._vae = tuned(vae, deterministic=settings.deterministic, compiled=compiled) if graphs else vae
        self._device = device
        self._grow_mask_by = settings.grow_mask_by
        self._samples_dtype = {"float16": torch.float16, "float32": torch.float32}[settings.samples_dtype]
        # A GPU divides by a plain number by multiplying with its inverse, which is off by a bit: by a tensor it is not.
        self._full_scale = torch.tensor([255.0], device=device)
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        # One thread computes whoever asks: torch keeps a team of CPU threads for each that does, and idle teams spin.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="device")
        self.check()

    @classmethod
    def load(
        cls, source: VaeSource, settings: RowSettings, expected_sha256: str, device: str, *, compiled: bool
    ) -> BatchEncoder:
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
        return cls(vae, settings, torch.device(device), compiled=compiled)

    def check(self) -> None:
        """Encode a small image once more; raises if the device or the model is not usable any more."""
        self._thread.submit(warm_up, self._vae).result()

    def launch(self, batch: Batch) -> Launched:
        """Stage a batch and queue it, in the order of the calls: see `inpaint_encode.batch.LatentEncoder`."""
        start = time.perf_counter()
        pixels, masks = self._staged(batch)
        copied = time.perf_counter() - start
        if self._copies is not None:
            return _Queued(self._thread.submit(self._launch_on_gpu, pixels, masks, self._copies))
        return _Queued(self._thread.submit(self._encode_on_cpu, pixels, masks, copied))

    def _encode_on_cpu(self, pixels: Tensor, masks: Tensor, copied: float) -> Launched:
        begun = time.perf_counter()
        samples, finite, grown = self._encode(pixels, masks)
        seconds = {"copy": copied, "encode": time.perf_counter() - begun, "copy_back": 0.0}
        return _Done(EncodedBatch(samples.numpy(), finite.numpy(), grown.numpy(), seconds))

    def _encode(self, pixels: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, H, W, 3]`` and ``[B, H, W]`` of uint8 to samples, which of them are finite, and grown masks."""
        levels = pixels.float() / self._full_scale
        samples = posterior(self._vae, neutralise(levels, masks.float())).mean.to(self._samples_dtype)
        return samples, samples.isfinite().flatten(1).all(dim=1), grow_mask(masks, self._grow_mask_by)

    def _staged(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The batch as two tensors on the host, from where a GPU can copy them while it works."""
        shape = len(batch.pixels), batch.height, batch.width
        pixels = torch.empty((*shape, 3), dtype=torch.uint8, pin_memory=self._copies is not None)
        masks = torch.empty(shape, dtype=torch.uint8, pin_memory=self._copies is not None)
        for index, (levels, bits) in enumerate(zip(batch.pixels, batch.masks, strict=True)):
            pixels[index].view(-1).numpy()[:] = levels
            masks[index].view(-1).numpy()[:] = np.unpackbits(bits, count=batch.height * batch.width)
        return pixels, masks

    def _launch_on_gpu(self, pixels: Tensor, masks: Tensor, copies: torch.cuda.Stream) -> Launched:
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
        outputs = self._encode(*on_device)
        marks[3].record()
        on_host = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in outputs]
        for host, tensor in zip(on_host, outputs, strict=True):
            host.copy_(tensor, non_blocking=True)
        marks[4].record()
        return _OnGpu(marks, on_host)


class _Queued(NamedTuple):
    """A batch that waits for the device's thread, or is done by it."""

    launched: Future[Launched]

    def result(self) -> EncodedBatch:
        return self.launched.result().result()


class _Done(NamedTuple):
    batch: EncodedBatch

    def result(self) -> EncodedBatch:
        return self.batch


class _OnGpu(NamedTuple):
    """A batch whose work is queued; ``marks`` are recorded around its copy, its work, and after its copy back."""

    marks: list[torch.cuda.Event]
    outputs: list[Tensor]

    def result(self) -> EncodedBatch:
        copied_from, copied, begun, encoded, back = self.marks
        back.synchronize()
        milliseconds = {
            "copy": copied_from.elapsed_time(copied),
            "encode": begun.elapsed_time(encoded),
            "copy_back": encoded.elapsed_time(back),
        }
        samples, finite, grown = (tensor.numpy() for tensor in self.outputs)
        seconds = {stage: value / 1e3 for stage, value in milliseconds.items()}
        return EncodedBatch(samples, finite, grown, seconds)
