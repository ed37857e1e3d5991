"""The export formats: which files a row becomes, their names and their contents.

Values are those of the row, bit for bit; float16 becomes float32 without loss. Only latents that were stored
``--scaled`` are computed for ComfyUI, which expects unscaled latents. Exporting a row again gives the same bytes.

A key is a path: its files stay in the folder, and it never shares a file with another key. Characters that a file name
cannot contain are written as ``%`` and two hexadecimal digits, as in a URI. Files with metadata contain the key itself.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from inpaint_encode.metadata import RowMetadata
from inpaint_encode.reader.output import Row
from inpaint_encode.schema import FOOTER_KEY, TENSORS

SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "comfyui": (".latent", "_mask.png"),
    "webdataset": (".tar",),
    "safetensors": (".safetensors",),
}
"""Suffixes of all files by ``--to``; see `compaction` for ``parquet``."""

_METADATA_KEY = FOOTER_KEY.decode()
"""Key of `RowMetadata` in every file's metadata, as in the footers of data files."""

_FLAT_METADATA = ("latent_form", "scaling_factor", "shift_factor")
"""Fields of `VaeMetadata` that safetensors files have as separate strings, unless a column has the same name."""

_MAX_BYTES = 200
"""Bytes of a name without its suffix; file systems allow 255."""

_FORBIDDEN = re.compile(r'[%\\:*?"<>|\x00-\x1f\x7f]|^_(?=(?:export|original)$|tmp-)')
"""Characters that a file system or store refuses in a name, the escape sign itself, and the first character of this
package's own names: records, original latents, temporary files."""

_FILE_SUFFIX = re.compile(r"\.(?=(?:latent|png|safetensors|npy|json)$)")
"""A folder with such a suffix could have the name of another key's file."""


@dataclass(frozen=True)
class Format:
    """The files of each row, and whether they are packed into tar files."""

    files: Mapping[str, Callable[[Row], bytes]]
    """Functions that return the contents of a file, by the file's path with ``{}`` in place of the key's path."""
    is_tar: bool = False

    def names(self, key: str) -> list[str]:
        """Return the paths of a row's files, relative to the destination or in the tar."""
        path = key_to_path(key, dots=not self.is_tar)
        return [name.format(path) for name in self.files]

    def files_of(self, row: Row) -> Iterator[tuple[str, bytes]]:
        """Yield the path and the contents of each of a row's files."""
        return zip(self.names(row["key"]), (contents(row) for contents in self.files.values()), strict=True)


def select_format(to: str, columns: Sequence[str], metadata: RowMetadata, *, has_frames: bool = False) -> Format:
    """Return a format for the rows of a data file.

    Args:
        to: a key of `SUFFIXES`.
        columns: of the rows.
        metadata: of the rows.
        has_frames: whether ComfyUI's latents of this VAE have an axis of frames.
    """
    tensors = [name for name in TENSORS if name in columns]
    files: dict[str, Callable[[Row], bytes]]
    if to == "safetensors":
        files = {"{}.safetensors": lambda row: _safetensors_file({name: row[name] for name in tensors}, row, metadata)}
        return Format(files)
    if to == "webdataset":
        files = {"{}.json": partial(_json_file, metadata), "{}.noise_mask.png": _mask_file}
        files |= {f"{{}}.{name}.npy": partial(_npy_file, name) for name in tensors if name != "noise_mask"}
        return Format(files, is_tar=True)
    latent_file = partial(_latent_file, metadata=metadata, has_frames=has_frames)
    files = {"{}.latent": partial(latent_file, "samples"), "{}_mask.png": _mask_file}
    if "original_samples" in tensors:
        files["_original/{}.latent"] = partial(latent_file, "original_samples")
    return Format(files)


def _latent_file(column: str, row: Row, *, metadata: RowMetadata, has_frames: bool) -> bytes:
    """Return a file of ComfyUI's SaveLatent, with an unscaled latent.

    The empty second tensor states its version; without it the loader divides the latent by SD 1's scaling factor.
    """
    import torch  # takes seconds to import; the other formats do not need it

    from inpaint_encode.reader.conventions import unscaled

    latent = np.ascontiguousarray(unscaled(torch.from_numpy(np.array(row[column])), metadata).numpy())
    batch = latent[None, :, None] if has_frames else latent[None]
    if metadata.scaled and metadata.vae.latent_form == "scaled":
        metadata = replace(metadata, scaled=False, vae=replace(metadata.vae, latent_form="unscaled"))
    if metadata.posterior == "moments":
        metadata = replace(metadata, posterior="mean")
    tensors = {"latent_tensor": batch, "latent_format_version_0": np.empty(0, np.float32)}
    return _safetensors_file(tensors, row, metadata)


def _mask_file(row: Row) -> bytes:
    out = io.BytesIO()
    Image.fromarray(row["noise_mask"][0] * np.uint8(255)).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _npy_file(column: str, row: Row) -> bytes:
    out = io.BytesIO()
    np.save(out, row[column], allow_pickle=False)
    return out.getvalue()


def _json_file(metadata: RowMetadata, row: Row) -> bytes:
    return json.dumps(_plain_columns(row, metadata), ensure_ascii=False, default=str).encode()


def _plain_columns(row: Row, metadata: RowMetadata) -> dict[str, Any]:
    """Return a row's columns without tensors, and the metadata."""
    return {name: value for name, value in row.items() if name not in TENSORS} | {_METADATA_KEY: metadata.to_dict()}


def _safetensors_file(tensors: Mapping[str, NDArray[Any]], row: Row, metadata: RowMetadata) -> bytes:
    """Return a safetensors file with a row's plain columns as strings: numbers and lists as JSON, without nulls.

    The strings are sorted; the library writes them in random order.
    """
    from safetensors.numpy import save

    values = {name: getattr(metadata.vae, name) for name in _FLAT_METADATA} | _plain_columns(row, metadata)
    strings = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        for name, value in sorted(values.items())
        if value is not None
    }
    made: bytes = save(dict(tensors), metadata={"": ""})
    end = 8 + int.from_bytes(made[:8], "little")
    header = {**json.loads(made[8:end]), "__metadata__": strings}  # from `save`
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


def key_to_path(key: str, *, dots: bool = True) -> str:
    """Return the relative path of a key's files, without suffix; two keys never have the same path.

    Args:
        key: slashes separate folders; an empty part becomes ``%``, and ``.`` and ``..`` are escaped.
        dots: whether the last part may have dots; in a WebDataset the first dot ends a sample's name.
    """
    *folders, name = (_escape_part(part) for part in key.split("/"))
    folders = [_escape(_FILE_SUFFIX, folder) for folder in folders]
    return "/".join(_shorten(part) for part in [*folders, name if dots else _escape(r"\.", name)])


def is_file_of_row(path: str, suffixes: tuple[str, ...]) -> bool:
    """Return whether an export may have written a file of a row with this path, which stays in its folder.

    Args:
        path: relative to the destination.
        suffixes: of the format, see `SUFFIXES`.
    """
    parts = path.removeprefix("_original/").split("/")
    is_escaped = not any(_FORBIDDEN.search(part.replace("%", "")) or part in ("", ".", "..") for part in parts)
    return is_escaped and path.endswith(suffixes)


def _escape_part(part: str) -> str:
    if part in ("", ".", ".."):
        return part.replace(".", "%2E") or "%"
    return _escape(_FORBIDDEN, part)


def _escape(pattern: re.Pattern[str] | str, part: str) -> str:
    return re.sub(pattern, lambda found: f"%{ord(found[0]):02X}", part)


def _shorten(part: str) -> str:
    """Replace the end of a long name by a hash after ``%%``, which no escaped name contains."""
    if len(part.encode()) <= _MAX_BYTES:
        return part
    kept = part.encode()[: _MAX_BYTES - 18].decode(errors="ignore")
    return f"{kept}%%{hashlib.sha256(part.encode()).hexdigest()[:16]}"
