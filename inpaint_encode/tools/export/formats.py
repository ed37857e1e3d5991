"""What a row becomes: of each format which files, how they are named, and how their bytes are made.

Values are those of the row, bit for bit: nothing is encoded again, and float16 is a part of float32. Only latents that
were stored ``--scaled`` are computed for ComfyUI, which wants them as the VAE gave them. The same row gives the same
bytes, wherever and however often it is exported.
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

from .names import path_of

__all__ = ["SUFFIXES", "Facts", "Format", "Kind", "Row", "format_of", "tar_bytes"]

SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "comfyui": (".latent", "_mask.png"),
    "webdataset": (".tar",),
    "safetensors": (".safetensors",),
}
"""By ``--to``, how the names of all its files end, and no others' do."""

_MADE_BY = FOOTER_KEY.decode()
"""Under this name every file says how its rows were made, as the metadata of the Parquet file does."""

Row = Mapping[str, Any]


class Facts(NamedTuple):
    """What all rows of a data file share."""

    metadata: RowMetadata
    """Of its footer."""
    video: bool
    """Whether ComfyUI has this VAE's latents with an axis of frames."""


class Kind(NamedTuple):
    """One of the files that a row becomes."""

    suffix: str
    make: Callable[[Row, Facts], bytes]
    folder: str = ""


@dataclass(frozen=True)
class Format:
    """The files of every row of an output, and whether they go into tars."""

    kinds: tuple[Kind, ...]
    is_tar: bool

    def names(self, key: str) -> list[str]:
        """What a row's files are called, relative to the output or in its tar, in the order of `contents`."""
        path = path_of(key, dots=not self.is_tar)
        return [f"{kind.folder}{path}{kind.suffix}" for kind in self.kinds]

    def contents(self, row: Row, facts: Facts) -> list[bytes]:
        """What is in a row's files; ``row`` is one of `inpaint_encode.reader.as_rows`."""
        return [kind.make(row, facts) for kind in self.kinds]


def format_of(to: str, columns: Sequence[str]) -> Format:
    """Return the format of this name for rows of these columns."""
    there = [name for name in TENSORS if name in columns]
    return Format(_KINDS[to](there), is_tar=to == "webdataset")


def _comfyui(tensors: Sequence[str]) -> tuple[Kind, ...]:
    latent, mask = Kind(".latent", partial(_latent, "samples")), Kind("_mask.png", _mask_png)
    original = Kind(".latent", partial(_latent, "original_samples"), "_original/")
    return (latent, mask, original) if "original_samples" in tensors else (latent, mask)


def _webdataset(tensors: Sequence[str]) -> tuple[Kind, ...]:
    arrays = [Kind(f".{name}.npy", partial(_npy, name)) for name in tensors if name != "noise_mask"]
    return (Kind(".json", _json), Kind(".noise_mask.png", _mask_png), *arrays)


def _safetensors(tensors: Sequence[str]) -> tuple[Kind, ...]:
    return (Kind(".safetensors", partial(_tensors, tensors)),)


_KINDS = {"comfyui": _comfyui, "webdataset": _webdataset, "safetensors": _safetensors}


def _latent(name: str, row: Row, facts: Facts) -> bytes:
    """A latent as ComfyUI saves one: without the second, empty tensor its loader would divide by a factor of SD 1."""
    latent = _unscaled(row[name], facts.metadata)
    batch = latent[None, :, None] if facts.video else latent[None]
    tensors = {"latent_tensor": batch, "latent_format_version_0": np.empty(0, np.float32)}
    return _safetensors_bytes(tensors, _strings(row, facts._replace(metadata=_metadata_of_unscaled(facts.metadata))))


def _unscaled(values: NDArray[Any], metadata: RowMetadata) -> NDArray[np.float32]:
    import torch

    from inpaint_encode.reader.conventions import unscaled

    latent: NDArray[np.float32] = unscaled(torch.from_numpy(np.array(values)), metadata).numpy()
    return np.ascontiguousarray(latent)


def _metadata_of_unscaled(metadata: RowMetadata) -> RowMetadata:
    """Return the metadata of what `_unscaled` returns."""
    if metadata.scaled and metadata.vae.latent_form == "scaled":
        metadata = replace(metadata, scaled=False, vae=replace(metadata.vae, latent_form="unscaled"))
    return replace(metadata, posterior="mean") if metadata.posterior == "moments" else metadata


def _mask_png(row: Row, facts: Facts) -> bytes:
    out = io.BytesIO()
    Image.fromarray(row["noise_mask"][0] * np.uint8(255)).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _npy(name: str, row: Row, facts: Facts) -> bytes:
    out = io.BytesIO()
    np.save(out, row[name], allow_pickle=False)
    return out.getvalue()


def _json(row: Row, facts: Facts) -> bytes:
    values = {**_plain(row), _MADE_BY: facts.metadata.to_dict()}
    return json.dumps(values, ensure_ascii=False, default=str).encode()


def _tensors(names: Sequence[str], row: Row, facts: Facts) -> bytes:
    return _safetensors_bytes({name: row[name] for name in names}, _strings(row, facts))


def _plain(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in TENSORS}


_FLAT = ("latent_form", "scaling_factor", "shift_factor")
"""Of how rows were made, what is a string of its own besides, unless the row has a column of that name."""


def _strings(row: Row, facts: Facts) -> dict[str, str]:
    """A row's plain columns for metadata that has strings alone: others as JSON, and what is null is left out."""
    flat = {name: getattr(facts.metadata.vae, name) for name in _FLAT}
    values = {**flat, **_plain(row), _MADE_BY: facts.metadata.to_dict()}
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        for name, value in values.items()
        if value is not None
    }


def _safetensors_bytes(tensors: Mapping[str, NDArray[Any]], strings: Mapping[str, str]) -> bytes:
    """The library's file, but that its header has the metadata in the order of their names, not in one by chance."""
    from safetensors.numpy import save

    made: bytes = save(dict(tensors), metadata={"": ""})
    end = 8 + int.from_bytes(made[:8], "little")
    header = {**json.loads(made[8:end]), "__metadata__": dict(sorted(strings.items()))}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, made[end:]])


def tar_bytes(members: Iterable[tuple[str, bytes]]) -> bytes:
    """An archive of files that belong to no one and are of no time."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return out.getvalue()
