"""Run the stages of a job one after the other in this process, without Ray."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from inpaint_encode import iter_rows
from inpaint_encode.core.decode import PairDecoder
from inpaint_encode.core.encoder import BatchEncoder
from inpaint_encode.job.stages import EncodeStage, commit_stage, decode_deferred, fetch_stage
from inpaint_encode.output.lease import acquire_lease
from inpaint_encode.output.resume import Remaining, job_record, open_output, row_metadata
from inpaint_encode.schema import data_schema
from inpaint_encode.settings import EncodeJob
from inpaint_encode.sources import open_source
from inpaint_encode.stores import storage
from inpaint_encode.vae.load import load_vae
from inpaint_encode.vae.registry import vae_metadata

WORKERS = 64
"""What a worker is told, so that it computes with one thread: teams of them spin where others want the same cores."""


def write_pairs(folder: Path, pairs: Mapping[str, tuple[Any, Any]]) -> None:
    """Save arrays ``(image, mask)`` by key as PNG below ``images`` and ``masks``."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for key, (image, mask) in pairs.items():
        Image.fromarray(image).save(folder / f"images/{key}.png")
        Image.fromarray(mask).save(folder / f"masks/{key}.png")


def encode_here(job: EncodeJob) -> str:
    """Do the job without Ray; return its output."""
    metadata = row_metadata(job.rows, job.decoding, vae_metadata(load_vae(job.vae), job.vae))
    source = open_source(job.source, job.access.to_access())
    output = job.output.output
    Path(output).mkdir(parents=True)
    with acquire_lease(storage.join(output, "_lease.json"), print) as lease:
        record = job_record(job, metadata, source.extra_columns)
        state, inventory = open_output(output, record, overwrite=False, token=lease.token)
        reading = {
            "decoder": PairDecoder.of(metadata, max_pixels=job.limits.max_pixels),
            "access": job.access.to_access(),
            "max_bytes": job.limits.max_bytes,
        }
        left = Remaining(state, inventory, job, source)
        make_schema = partial(data_schema, metadata, left.log.schema)
        opened = partial(BatchEncoder.load, job.vae, metadata, compiled=False)
        encode = EncodeStage(
            opened,
            job.workers.batch_size,
            make_schema,
            gpus=0,
            workers=WORKERS,
            decode_deferred=partial(decode_deferred, **reading),
        )
        work = pa.concat_tables(left.work())
        for index in range(work.num_rows):
            row = encode(fetch_stage(work.slice(index, 1), threads=1, **reading))
            (receipt,) = commit_stage(row, state=state, make_schema=make_schema).to_pylist()
            assert (receipt["fatal"], receipt["errors"]) == (None, []), receipt
    return output


def tensor_rows(output: str) -> dict[str, dict[str, Any]]:
    """The rows of an output by their keys, arrays as tensors."""
    found = {}
    for row in iter_rows(output):
        arrays = {name: torch.from_numpy(np.array(one)) for name, one in row.items() if isinstance(one, np.ndarray)}
        found[row["key"]] = {**row, **arrays}
    return found
