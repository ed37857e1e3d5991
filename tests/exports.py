"""Writes outputs with any keys and settings, without a VAE; exports them, and reads exported files."""

from __future__ import annotations

import io
import json
import tarfile
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from inpaint_encode.core.chunk import EncodedPair
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.output.lease import acquire_lease
from inpaint_encode.reader import Output, iter_rows
from inpaint_encode.stores import storage
from inpaint_encode.tools.export.destination import Destination
from inpaint_encode.tools.export.pipeline import EXPORT_WORK, export_data_file
from tests.metadata import changed, row_metadata
from tests.outputs import files_of
from tests.rows import data_file, encoded_pair

JOB = "0a1b2c3d"
METADATA = row_metadata(vae_source="a-vae", config_sha256="0" * 64, tile=False)
FULL = {"also_original": True, "latent_mask": "comfyui"}
OWN_COLUMNS = pa.struct([("caption", pa.string()), ("scaling_factor", pa.int64()), ("tags", pa.list_(pa.string()))])
"""Columns of a manifest; one has the name of a metadata field."""


def write_chunk(output: str, chunk: int, keys: list[str], *, job: str = JOB, seed: int = 0, **changes: Any) -> str:
    """Write a data file of random rows; return its path."""
    metadata = changed(METADATA, **changes)
    rng = np.random.default_rng([seed, chunk])
    rows = [_row(rng, key, metadata) for key in keys]
    own = [{"caption": f'«{key}», "{chunk}"\n', "scaling_factor": chunk, "tags": [key, "ü"]} for key in keys]
    storage.write(f"{output}/{job}-{chunk:08d}.parquet", data_file(rows, metadata, own, OWN_COLUMNS))
    return f"{job}-{chunk:08d}.parquet"


def _row(rng: np.random.Generator, key: str, metadata: RowMetadata) -> EncodedPair:
    scale = metadata.vae.vae_scale_factor
    height, width = (int(side) for side in rng.integers(1, 5, 2) * scale)
    channels = metadata.vae.latent_channels * (2 if metadata.posterior == "moments" else 1)
    values = rng.standard_normal((3, channels, height // scale, width // scale)).astype(metadata.samples_dtype)
    mask = rng.integers(0, 2, (height, width), np.uint8)
    tensors = {"original_samples": values[1], "latent_mask": values[2, :1]}
    return encoded_pair(key, values[0], mask, border=3, image_version='"e"', mask_version='"f"', **tensors)


def export(output: Any, to: str, destination: Any, *, has_frames: bool = False) -> None:
    """Export every data file of an output as a worker does, in this process."""
    with acquire_lease(f"{destination}/_lease.json", print) as lease:
        there = Destination(str(destination), lease.token)
        for file in Output.open(str(output)).files:
            work = pa.Table.from_pylist([{"path": file.path, "version": file.version}], EXPORT_WORK)
            result = export_data_file(work, source=str(output), destination=there, to=to, has_frames=has_frames)
            assert result["fatal"].to_pylist() == [None]


def exported(output: str) -> dict[str, bytes]:
    """Return the contents of all files of an export by path, records included.

    The index is left out: it has the versions of files, which are times on a disk.
    """
    return {path: storage.read(f"{output}/{path}").data for path in files_of(output) if not path.startswith("_index")}


def of_rows(output: str) -> dict[str, bytes]:
    """Return the contents of the files of rows by path."""
    return {path: data for path, data in exported(output).items() if not path.startswith("_export")}


def by_key(output: str) -> dict[str, dict[str, Any]]:
    """Return the rows of an encode output by key."""
    return {row["key"]: row for row in iter_rows(output)}


def load_latent(data: bytes) -> np.ndarray:
    """Read a file as ComfyUI's LoadLatent does: only a latent without a version is divided by SD 1's factor."""
    import torch
    from safetensors.torch import load

    latent = load(data)
    multiplier = 1.0 if "latent_format_version_0" in latent else 1 / 0.18215
    assert latent["latent_tensor"].dtype == torch.float32
    return (latent["latent_tensor"].float() * multiplier).numpy()


def load_mask(data: bytes) -> np.ndarray:
    """Read a PNG as ComfyUI's mask loader does: float32, 0 to 1."""
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode) == ("PNG", "L")
        return np.asarray(image).astype(np.float32) / 255


def metadata_of(data: bytes) -> dict[str, str]:
    """Return the strings in the header of a safetensors file."""
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]


def members_of(tar: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        return opened.getnames()
