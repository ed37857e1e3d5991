"""Outputs of any keys and settings, written without a VAE, and what an export must be of them."""

from __future__ import annotations

import io
import json
import tarfile
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from inpaint_encode.job.transfer import ENCODED, table_of
from inpaint_encode.output.parquet import data_table, parquet_bytes
from inpaint_encode.reader import iter_rows
from inpaint_encode.schema import EXTRA_COLUMNS, data_schema, pack_mask
from inpaint_encode.stores import storage
from tests.outputs import files_of

JOB = "0a1b2c3d"
MADE_BY = {
    "contract": 1,
    "samples_dtype": "float16",
    "mask_encoding": "tensor",
    "vae_class": "AutoencoderKL",
    "vae_source": "a-vae",
    "weights_sha256": "0" * 64,
    "config_sha256": "0" * 64,
    "ratio": 8,
    "crop_multiple": 8,
    "latent_channels": 4,
    "latent_form": "unscaled",
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "posterior": "mean",
    "scaled": False,
    "also_original": False,
    "latent_mask": "none",
    "tile": False,
}
FULL = {"also_original": True, "latent_mask": "comfyui"}
OWN_COLUMNS = pa.struct([("caption", pa.string()), ("scaling_factor", pa.int64()), ("tags", pa.list_(pa.string()))])
"""Columns of a list of pairs, one of which has the name of a fact."""


def write_chunk(output: str, chunk: int, keys: list[str], *, job: str = JOB, seed: int = 0, **made_by: Any) -> str:
    """Write a data file of random rows; return its path."""
    made_by = {**MADE_BY, **made_by}
    rng = np.random.default_rng([seed, chunk])
    encoded = table_of([_encoded(rng, key, made_by) for key in keys], ENCODED)
    own = [{"caption": f'«{key}», "{chunk}"\n', "scaling_factor": chunk, "tags": [key, "ü"]} for key in keys]
    encoded = encoded.append_column(EXTRA_COLUMNS, pa.array(own, OWN_COLUMNS))
    data = data_table(encoded, data_schema(made_by, encoded.schema))
    storage.write(f"{output}/{job}-{chunk:08d}.parquet", parquet_bytes(data))
    return f"{job}-{chunk:08d}.parquet"


def _encoded(rng: np.random.Generator, key: str, made_by: dict[str, Any]) -> dict[str, Any]:
    height, width = (int(side) for side in rng.integers(1, 5, 2) * made_by["ratio"])
    channels = made_by["latent_channels"] * (2 if made_by["posterior"] == "moments" else 1)
    shape = (channels, height // made_by["ratio"], width // made_by["ratio"])
    values = rng.standard_normal((3, *shape)).astype(made_by["samples_dtype"])
    geometry = {"source_height": height + 3, "source_width": width, "resized_height": height + 3}
    geometry |= {"resized_width": width, "crop_top": 1, "crop_left": 0, "height": height, "width": width}
    mask = rng.integers(0, 2, (height, width), np.uint8)
    return {
        "key": key,
        "image_uri": f"s3://in/{key}.jpg",
        "mask_uri": f"s3://in/{key}.png",
        "mask_index": 0,
        "image_version": '"e"',
        "mask_version": '"f"',
        **geometry,
        "samples": values[0],
        "samples_shape": shape,
        "original_samples": values[1],
        "latent_mask": values[2, :1],
        "noise_mask": pack_mask(mask),
        "mask_coverage": float(mask.mean()),
        "precision": "float32",
    }


def exported(output: str) -> dict[str, bytes]:
    """Every file of an export, its notes too, by its path."""
    return {path: storage.read(f"{output}/{path}").data for path in files_of(output)}


def of_rows(output: str) -> dict[str, bytes]:
    """Every file of an export but its notes."""
    return {path: data for path, data in exported(output).items() if not path.startswith("_export")}


def by_key(output: str) -> dict[str, dict[str, Any]]:
    """The rows of an output of encode."""
    return {row["key"]: row for row in iter_rows(output)}


def load_latent(data: bytes) -> np.ndarray:
    """What ComfyUI's LoadLatent makes of a file: a latent of the first version is not divided by SD 1's factor."""
    import torch
    from safetensors.torch import load

    latent = load(data)
    multiplier = 1.0 if "latent_format_version_0" in latent else 1 / 0.18215
    assert latent["latent_tensor"].dtype == torch.float32
    return (latent["latent_tensor"].float() * multiplier).numpy()


def load_mask(data: bytes) -> np.ndarray:
    """What a loader of masks makes of a PNG: 0 to 1, float32, from its levels of grey."""
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode) == ("PNG", "L")
        return np.asarray(image).astype(np.float32) / 255


def metadata_of(data: bytes) -> dict[str, str]:
    """The strings in a safetensors file's header."""
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]


def members_of(tar: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        return opened.getnames()
