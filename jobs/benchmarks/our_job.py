"""The job itself as a contestant: the same command path that a user takes, with a stand-in for the VAE if wanted."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from inpaint_encode.core.batch import MAX_BATCH_SIZE, Batch, CompletedFuture, EncodedBatch
from inpaint_encode.core.transform import grow_mask
from inpaint_encode.job.pipeline import Backend, run_job
from inpaint_encode.job.progress import Display, Silent
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.settings import EncodeJob, Output, RowSettings, Source, VaeSource, Workers

from .fake_vae import FAKE_VAE, NullVae, WaitingVae
from .peers.contestant import Contestant, Task

__all__ = ["StandInEncoder", "product", "run_product", "stand_in_backend"]


class StandInEncoder:
    """A stand-in VAE where a worker has its encoder; on the CPU, and in one thread, as a GPU leaves the CPU alone."""

    precision = "float16"

    def __init__(self, metadata: RowMetadata, _device: str, seconds_per_image: float = 0.0) -> None:
        torch.set_num_threads(1)
        self._vae = WaitingVae(seconds_per_image) if seconds_per_image else NullVae()
        self._grow_mask_by = metadata.grow_mask_by
        self._device = threading.Lock()

    def batch_size(self, _height: int, _width: int) -> int:
        """Memory is no matter here."""
        return MAX_BATCH_SIZE

    def check(self) -> None:
        """Nothing can break."""

    def launch(self, batch: Batch, *, tile: bool | None = None) -> CompletedFuture:
        """Make the batch's latents by the stand-in, and grow its masks as the job does."""
        begun = time.perf_counter()
        shape = len(batch.pixels), batch.height, batch.width
        pixels = np.stack(batch.pixels).reshape(*shape, 3)
        bits = [np.unpackbits(bits, count=batch.height * batch.width) for bits in batch.masks]
        masks = np.stack(bits).reshape(shape)
        staged = time.perf_counter()
        with self._device:  # one batch at a time, whichever thread brings it
            samples = self._vae.encode_levels(pixels, masks)
        grown = grow_mask(torch.from_numpy(masks), self._grow_mask_by).numpy()
        seconds = {"copy": staged - begun, "encode": time.perf_counter() - staged, "copy_back": 0.0}
        return CompletedFuture(EncodedBatch(samples, _finite(samples), _finite(samples), grown, seconds))


def _finite(samples: NDArray[Any]) -> NDArray[np.bool_]:
    finite: NDArray[np.bool_] = np.isfinite(samples).all(axis=(1, 2, 3))
    return finite


def stand_in_backend(_job: EncodeJob, seconds_per_image: float = 0.0) -> Backend:
    """What `inpaint_encode.job.pipeline.run_job` takes in the place of a VAE."""
    return Backend(FAKE_VAE, partial(StandInEncoder, seconds_per_image=seconds_per_image))


def run_product(
    source: Source,
    output: Path,
    *,
    backend_of: Callable[[EncodeJob], Backend] | None = stand_in_backend,
    vae: str = "stand-in",
    display: Display | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Run the job from ``source`` into a new ``output``, on the Ray that this process has joined; return its report.

    Args:
        source: of the pairs.
        output: removed before.
        backend_of: what makes latents; None is the VAE at ``vae``.
        vae: where the VAE is.
        display: is told how far the job is.
        options: fields of `RowSettings`, `Workers` and `Output`.
    """
    shutil.rmtree(output, ignore_errors=True)

    def given(kind: Any) -> dict[str, Any]:
        return {name: options[name] for name in kind.model_fields if name in options}

    job = EncodeJob(
        source=source,
        vae=VaeSource(vae=vae),
        output=Output(output=str(output), **given(Output)),
        rows=RowSettings(**given(RowSettings)),
        workers=Workers(**given(Workers)),
    )
    return run_job(job, display or Silent(), backend_of)


def product(name: str, **options: Any) -> Contestant:
    """The job as a `Contestant`, its pairs by a manifest; ``options`` as in `run_product`."""

    def run(task: Task) -> None:
        manifest = task.output.with_suffix(".parquet")
        pq.write_table(pa.Table.from_pylist([pair._asdict() for pair in task.pairs]), manifest)
        gpus = "1" if task.device.startswith("cuda") else "0"
        run_product(Source(pairs=str(manifest), key_column="key"), task.output, gpus_per_worker=gpus, **options)

    return Contestant(name, run)
