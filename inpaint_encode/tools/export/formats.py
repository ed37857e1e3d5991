"""The export formats: which files a row becomes, their names and their contents.

Values are those of the row, bit for bit; float16 becomes float32 without loss. Only latents that were stored
``--scaled`` are computed for ComfyUI, which expects unscaled latents. Exporting a row again gives the same bytes.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from inpaint_encode.metadata import RowMetadata
from inpaint_encode.schema import FOOTER_KEY, TENSORS

from .file_names import key_to_path

__all__ = ["SUFFIXES", "Format", "FormatOptions", "Row", "RowFile", "select_format", "tar_bytes"]

SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "comfyui": (".latent", "_mask.png"),
    "webdataset": (".tar",),
    "safetensors": (".safetensors",),
}
"""Suffixes of all files by ``--to``."""

_METADATA_KEY = FOOTER_KEY.decode()
"""Key of `RowMetadata` in every file's metadata, as in the footers of data files."""

_FLAT_METADATA = ("latent_form", "scaling_factor", "shift_factor")
"""Fields of `VaeMetadata` that safetensors files have as separate strings, unless a column has the same name."""

Row = Mapping[str, Any]
"""A row as `inpaint_encode.reader.as_rows` returns it."""


class FormatOptions(NamedTuple):
    """What all rows of a data file share."""

    metadata: RowMetadata
    has_frames: bool
    """Whether ComfyUI's latents of this VAE have an axis of frames."""


class RowFile(NamedTuple):
    """One of the files that a row becomes."""

    suffix: str
    make: Callable[[Row, FormatOptions], bytes]
    folder: str = ""


@dataclass(frozen=True)
class Format:
    """The files of each row, and whether they are packed into tar files."""

    files: tuple[RowFile, ...]
    is_tar: bool

    def names(self, key: str) -> list[str]:
        """Return the paths of a row's files, relative to the destination or in the tar, in the order of `contents`."""
        path = key_to_path(key, dots=not self.is_tar)
        return [f"{file.folder}{path}{file.suffix}" for file in self.files]

    def contents(self, row: Row, options: FormatOptions) -> list[bytes]:
        """Return the contents of a row's files."""
        return [file.make(row, options) for file in self.files]


def select_format(to: str, columns: Sequence[str]) -> Format:
    """Return the format ``--to`` for rows with these columns."""
    tensors = [name for name in TENSORS if name in columns]
    if to == "safetensors":
        return Format((RowFile(".safetensors", partial(_safetensors_file, tensors)),), is_tar=False)
    if to == "webdataset":
        arrays = [RowFile(f".{name}.npy", partial(_npy_file, name)) for name in tensors if name != "noise_mask"]
        return Format((RowFile(".json", _json_file), RowFile(".noise_mask.png", _mask_file), *arrays), is_tar=True)
    files = [RowFile(".latent", partial(_latent_file, "samples")), RowFile("_mask.png", _mask_file)]
    if "original_samples" in tensors:
        files.append(RowFile(".latent", partial(_latent_file, "original_samples"), "_original/"))
    return Format(tuple(files), is_tar=False)


def _latent_file(column: str, row: Row, options: FormatOptions) -> bytes:
    """Return a file of ComfyUI's SaveLatent, with an unscaled latent.

    The empty second tensor states its version; without it the loader divides the latent by SD 1's scaling factor.
    """
    import torch  # takes seconds to import; the other formats do not need it

    from inpaint_encode.reader.conventions import unscaled

    metadata = options.metadata
    latent = np.ascontiguousarray(unscaled(torch.from_numpy(np.array(row[column])), metadata).numpy())
    batch = latent[None, :, None] if options.has_frames else latent[None]
    if metadata.scaled and metadata.vae.latent_form == "scaled":
        metadata = replace(metadata, scaled=False, vae=replace(metadata.vae, latent_form="unscaled"))
    if metadata.posterior == "moments":
        metadata = replace(metadata, posterior="mean")
    tensors = {"latent_tensor": batch, "latent_format_version_0": np.empty(0, np.float32)}
    return _safetensors_bytes(tensors, _strings(row, metadata))


def _mask_file(row: Row, options: FormatOptions) -> bytes:
    out = io.BytesIO()
    Image.fromarray(row["noise_mask"][0] * np.uint8(255)).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _npy_file(column: str, row: Row, options: FormatOptions) -> bytes:
    out = io.BytesIO()
    np.save(out, row[column], allow_pickle=False)
    return out.getvalue()


def _json_file(row: Row, options: FormatOptions) -> bytes:
    values = {**_plain(row), _METADATA_KEY: options.metadata.to_dict()}
    return json.dumps(values, ensure_ascii=False, default=str).encode()


def _safetensors_file(columns: Sequence[str], row: Row, options: FormatOptions) -> bytes:
    return _safetensors_bytes({name: row[name] for name in columns}, _strings(row, options.metadata))


def _plain(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in TENSORS}


def _strings(row: Row, metadata: RowMetadata) -> dict[str, str]:
    """Return a row's plain columns as strings: numbers and lists as JSON, without nulls."""
    flat = {name: getattr(metadata.vae, name) for name in _FLAT_METADATA}
    values = {**flat, **_plain(row), _METADATA_KEY: metadata.to_dict()}
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        for name, value in values.items()
        if value is not None
    }


def _safetensors_bytes(tensors: Mapping[str, NDArray[Any]], strings: Mapping[str, str]) -> bytes:
    """Return a safetensors file with sorted metadata; the library writes them in random order."""
    from safetensors.numpy import save

    made: bytes = save(dict(tensors), metadata={"": ""})
    end = 8 + int.from_bytes(made[:8], "little")
    header = {**json.loads(made[8:end]), "__metadata__": dict(sorted(strings.items()))}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, made[end:]])


def tar_bytes(members: Iterable[tuple[str, bytes]]) -> bytes:
    """Return a tar file of (name, contents), without owners and times."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return out.getvalue()
