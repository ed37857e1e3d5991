"""Outputs that tests write without a VAE: rows with known latents, in any number of files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from inpaint_encode.core.chunk import Reject
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.output import plan
from inpaint_encode.output.lease import acquire_lease
from inpaint_encode.output.parquet import parquet_bytes
from inpaint_encode.output.plan_log import PlanLog
from inpaint_encode.output.report import RunStats, write_report
from inpaint_encode.output.resume import job_record, open_output
from inpaint_encode.output.resume import row_metadata as job_metadata
from inpaint_encode.output.rows import rejects_table
from inpaint_encode.schema import RECEIPT, REJECTS, SOURCE_PAIRS, data_schema
from inpaint_encode.sources import LeftOut
from inpaint_encode.stores import storage
from tests.metadata import VAE, changed, row_metadata
from tests.rows import encoded_pair, groups_of

JOB = "0123abcd"
NO_VAE = "/no/such/vae"


METADATA = row_metadata(vae_source=NO_VAE, versions={"python": "3.11.0"})


def metadata(**changes: Any) -> RowMetadata:
    """Return `METADATA` with other values."""
    return changed(METADATA, **changes)


def row(key: str, latent: np.ndarray, covered: int = 0, **changes: Any) -> dict[str, Any]:
    """Return a row whose grown mask covers the first ``covered`` pixels; the crop has 8 pixels per latent cell."""
    height, width = (8 * side for side in latent.shape[1:])
    mask = (np.arange(height * width) < covered).astype(np.uint8)
    plain = {"key": key, "image_uri": f"/images/{key}.png", "mask_uri": f"/masks/{key}.png", "mask_index": 0}
    plain |= {"image_version": "1", "mask_version": "1", "crop_top": 0, "crop_left": 0, "precision": "float32"}
    plain |= dict.fromkeys(("source_height", "resized_height"), height)
    plain |= dict.fromkeys(("source_width", "resized_width"), width)
    plain |= {"mask_coverage": covered / mask.size, "tiled": False}
    samples = {"data": latent.reshape(-1), "shape": list(latent.shape)}
    return plain | {"samples": samples, "noise_mask": {"data": mask, "shape": [1, height, width]}} | changes


def data_file(table: list[dict[str, Any]], about: RowMetadata) -> bytes:
    """Return rows as a data file."""
    schema = data_schema(about)
    return parquet_bytes(pa.Table.from_pylist(table, schema))


def write_output(folder: Path, files: list[list[dict[str, Any]]], about: RowMetadata = METADATA) -> Path:
    """Write data files and ``_job.json``, without a report, as an unfinished job leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    for chunk, table in enumerate(files):
        (folder / f"{JOB}-{chunk:08d}.parquet").write_bytes(data_file(table, about))
    job = {"job": JOB, "created": "2026-01-02T03:04:05+00:00", "rows": about.to_dict(), "vae_source": NO_VAE}
    (folder / "_job.json").write_text(json.dumps(job))
    return folder


def write_rejects(folder: Path, chunk: int, rejects: list[dict[str, Any]]) -> None:
    """Write a chunk's file of rejected pairs; missing URIs are made from the key."""
    (folder / "_rejected").mkdir(exist_ok=True)
    whole = [
        {"image_uri": f"/images/{one['key']}.png", "mask_uri": f"/masks/{one['key']}.png", "stage": "image", **one}
        for one in rejects
    ]
    table = pa.Table.from_pylist(whole, REJECTS)
    (folder / "_rejected" / f"{JOB}-{chunk:08d}.parquet").write_bytes(parquet_bytes(table))


def latents(count: int, seed: int = 0, height: int = 2, width: int = 3) -> list[np.ndarray]:
    """Return random latents with four channels, whose means are 0, 1, 2 and 3."""
    rng = np.random.default_rng(seed)
    return [
        (rng.normal(size=(4, height, width)) + np.arange(4)[:, None, None]).astype(np.float16) for _ in range(count)
    ]


def tables(count: int = 22) -> list[list[dict[str, Any]]]:
    """Return rows ``pair-00`` and on for two data files, with masks of different sizes."""
    rows = [row(f"pair-{at:02d}", one, covered=at) for at, one in enumerate(latents(count))]
    return [rows[: count // 2], rows[count // 2 :]]


SIDES, CHUNK_PAIRS = (64, 80), 3


class JobOutput:
    """An output that is written as a job writes it, chunk by chunk, with constant latents."""

    def __init__(self, output, make_job, **options):
        self.output = str(output)
        job = make_job("in/images", "in/masks", self.output, **options)
        self.metadata = job_metadata(job.rows, job.decoding, VAE)
        self.record = job_record(job, self.metadata)
        self.lease = acquire_lease(f"{self.output}/_lease.json", lambda _: None)
        self.state, _ = open_output(self.output, self.record, overwrite=False, token=self.lease.token)
        self.log = PlanLog(self.state, pa.schema([]))
        self.committed, self.kept = [], 0

    def plan(self, pairs):
        """Plan a unit of chunks of `CHUNK_PAIRS` pairs."""
        about = dict.fromkeys(("image_version", "mask_version"), "") | dict.fromkeys(("mask_index", "image_bytes"), 0)
        about |= {"image_uri": "i", "mask_uri": "m"}
        rows = [{**about, "key": f"k{number:03}", "line": number} for number in range(pairs)]
        self.log.append(plan.split_into_chunks(pa.Table.from_pylist(rows, SOURCE_PAIRS), CHUNK_PAIRS, 1), ())

    def chunk(self, number, rejected=0):
        """Commit a chunk of the first unit with `CHUNK_PAIRS` pairs, some of them rejected."""
        name = plan.chunk_name(0, number)
        planned = self.log.chunks[name]
        work = {"chunk": name, "revision": 0, "hash": planned.hash, "part": planned.part, "keep": False}
        pairs = [self.row(f"k{number * CHUNK_PAIRS + index:03}") for index in range(CHUNK_PAIRS)]
        rejects = rejects_table([Reject(row.pair, "image.truncated", "cut") for row in pairs[:rejected]])
        groups = groups_of(pairs[rejected:], self.metadata)
        self.committed.append((work, self.state.commit(work, *groups, rejects, check=lambda: None)))

    def row(self, key):
        height, width = SIDES
        samples = np.ones((4, height // 8, width // 8), self.metadata.samples_dtype)
        tensors = {"original_samples": samples, "latent_mask": samples[:1]}
        return encoded_pair(key, samples, np.zeros(SIDES, np.uint8), image_uri="i", mask_uri="m", **tensors)

    def keep_receipts(self):
        """Write the receipts of the chunks since the last call, as a run does every 30 s."""
        receipts = [
            {**work, **one.to_receipt(), "counters": [], "fatal": None} for work, one in self.committed[self.kept :]
        ]
        self.state.write_receipts("1", self.kept, [{k: r[k] for k in RECEIPT.names} for r in receipts])
        self.kept = len(self.committed)

    def finish(self, pairs):
        whole = RunStats.of(committed for _, committed in self.committed)
        write_report(f"{self.output}/_report.json", {}, {"pairs": pairs}, LeftOut(), whole, RunStats())

    def end(self):
        storage.delete(f"{self.output}/_lease.json")
