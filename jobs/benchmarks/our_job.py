"""The job as one of the compared programs: the same code that a user runs, with a fake VAE or a real one."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from inpaint_encode.core.batch import MAX_BATCH_SIZE, Batch, EncodedBatch
from inpaint_encode.core.transform import grow_mask
from inpaint_encode.job.pipeline import Backend, run_job
from inpaint_encode.job.progress import Display
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.settings import EncodeJob, Output, RowSettings, Source, VaeSource, Workers

from .fake_vae import FAKE_VAE, FakeVae
from .peers.task import Program, Task

__all__ = ["FakeEncoder", "fake_backend", "our_job", "run_our_job"]


class FakeEncoder:
    """A `FakeVae` as a worker's encoder; on the CPU, in one thread, because a GPU would leave the CPU alone."""

    precision = "float16"

    def __init__(self, metadata: RowMetadata, _device: str, seconds_per_image: float = 0.0) -> None:
        torch.set_num_threads(1)
        self._vae = FakeVae(seconds_per_image)
        self._grow_mask_by = metadata.grow_mask_by
        self._device = threading.Lock()

    def batch_size(self, _height: int, _width: int) -> int:
        """Return the maximum: memory does not limit a fake VAE."""
        return MAX_BATCH_SIZE

    def check(self) -> None:
        """Do nothing: no device can fail."""

    def launch(self, batch: Batch, *, tile: bool | None = None) -> Future[EncodedBatch]:
        """Encode the batch and grow its masks as the job does."""
        begun = time.perf_counter()
        shape = len(batch.pixels), batch.height, batch.width
        pixels = np.stack(batch.pixels).reshape(*shape, 3)
        bits = [np.unpackbits(bits, count=batch.height * batch.width) for bits in batch.masks]
        masks = np.stack(bits).reshape(shape)
        staged = time.perf_counter()
        with self._device:  # one batch at a time, as on a GPU
            samples = self._vae.encode_uint8(pixels, masks)
        grown = grow_mask(torch.from_numpy(masks), self._grow_mask_by).numpy()
        seconds = {"copy": staged - begun, "encode": time.perf_counter() - staged, "copy_back": 0.0}
        finite = np.ones(len(samples), np.bool_)
        done: Future[EncodedBatch] = Future()
        done.set_result(EncodedBatch(samples, finite, finite, grown, seconds))
        return done


def fake_backend(_job: EncodeJob, seconds_per_image: float = 0.0) -> Backend:
    """Return a fake VAE for `inpaint_encode.job.pipeline.run_job`."""
    return Backend(FAKE_VAE, partial(FakeEncoder, seconds_per_image=seconds_per_image))


def run_our_job(
    source: Source,
    output: Path,
    *,
    backend_of: Callable[[EncodeJob], Backend] | None = fake_backend,
    vae: str = "fake",
    display: Display | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Run the job on the Ray that this process is connected to, and return its report.

    Args:
        source: the pairs.
        output: folder; removed before the run.
        backend_of: returns what encodes; None for the VAE at ``vae``.
        vae: folder of the VAE.
        display: shows the progress.
        options: fields of `RowSettings`, `Workers` and `Output`.
    """
    shutil.rmtree(output, ignore_errors=True)

    def fields_of(settings: Any) -> dict[str, Any]:
        return {name: options[name] for name in settings.model_fields if name in options}

    job = EncodeJob(
        source=source,
        vae=VaeSource(vae=vae),
        output=Output(output=str(output), **fields_of(Output)),
        rows=RowSettings(**fields_of(RowSettings)),
        workers=Workers(**fields_of(Workers)),
    )
    return run_job(job, display or Display(), backend_of)


def our_job(name: str, **options: Any) -> Program:
    """Return the job as a `Program` that reads its pairs from a manifest; for ``options`` see `run_our_job`."""

    def run(task: Task) -> None:
        manifest = task.output.with_suffix(".parquet")
        pq.write_table(pa.Table.from_pylist([pair._asdict() for pair in task.pairs]), manifest)
        run_our_job(Source(pairs=str(manifest), key_column="key"), task.output, gpus_per_worker="0", **options)

    return Program(name, run)
