"""Outputs that no job wrote: as many rows and files as a test needs, of latents that it knows, in a second."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from inpaint_encode.metadata import RowMetadata
from inpaint_encode.output.parquet import parquet_bytes
from inpaint_encode.schema import REJECTS, data_schema
from tests.metadata import changed, row_metadata

JOB = "0123abcd"
NO_VAE = "/no/such/vae"


METADATA = row_metadata(vae_source=NO_VAE, versions={"python": "3.11.0"})


def metadata(**changes: Any) -> RowMetadata:
    """Return `METADATA` with other values."""
    return changed(METADATA, **changes)


def row(key: str, latent: np.ndarray, covered: int = 0, **changes: Any) -> dict[str, Any]:
    """A row whose grown mask has ``covered`` pixels of the first line and on; the crop is the latent's at ratio 8."""
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
    """Some rows as a file, in the layout that the job writes."""
    schema = data_schema(about)
    return parquet_bytes(pa.Table.from_pylist(table, schema))


def write_output(folder: Path, files: list[list[dict[str, Any]]], about: RowMetadata = METADATA) -> Path:
    """Write files of rows and ``_job.json``; a report is there when the job has ended, and is not written."""
    folder.mkdir(parents=True, exist_ok=True)
    for chunk, table in enumerate(files):
        (folder / f"{JOB}-{chunk:08d}.parquet").write_bytes(data_file(table, about))
    job = {"job": JOB, "created": "2026-01-02T03:04:05+00:00", "rows": about.to_dict(), "vae_source": NO_VAE}
    (folder / "_job.json").write_text(json.dumps(job))
    return folder


def write_rejects(folder: Path, chunk: int, rejects: list[dict[str, Any]]) -> None:
    """Write a chunk's file of rejected pairs; what a reject lacks is made of its key."""
    (folder / "_rejected").mkdir(exist_ok=True)
    whole = [
        {"image_uri": f"/images/{one['key']}.png", "mask_uri": f"/masks/{one['key']}.png", "stage": "decode", **one}
        for one in rejects
    ]
    table = pa.Table.from_pylist(whole, REJECTS)
    (folder / "_rejected" / f"{JOB}-{chunk:08d}.parquet").write_bytes(parquet_bytes(table))


def latents(count: int, seed: int = 0, height: int = 2, width: int = 3) -> list[np.ndarray]:
    """Some latents of four channels around 0, 1, 2 and 3."""
    rng = np.random.default_rng(seed)
    return [
        (rng.normal(size=(4, height, width)) + np.arange(4)[:, None, None]).astype(np.float16) for _ in range(count)
    ]
