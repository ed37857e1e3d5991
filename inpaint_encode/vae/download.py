"""Copy a VAE's files from a bucket to this node, once for all of its processes."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import NamedTuple

from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.stores import storage

from .single_file import check_no_pickles

__all__ = ["download"]

_DOWNLOADED = re.compile(r"config\.json|diffusion_pytorch_model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
"""Files of a folder that are downloaded: no variants such as fp16, and no other parts of a pipeline."""
_RANGE_BYTES = 64 * 2**20
"""Bytes per request. One of this size ends well within its time-out, and it is all that memory holds of the file."""


class _Object(NamedTuple):
    uri: str
    name: str
    size: int
    version: str


def download(uri: str) -> Path:
    """Copy a ``.safetensors`` file or a diffusers folder from a bucket to this node; return the path of the copy.

    The copy's name depends on the objects' ETags, so that changed weights get a new copy. Delete copies as you like.
    Processes that ask at the same time wait for the first. The cache is ``inpaint-encode`` below ``XDG_CACHE_HOME``.

    Raises:
        UsageError: there is no such object, it may not be read, or the folder has pickles only.
        JobFailed: the store does not answer, or the object changes during the download.
    """
    try:
        if uri.endswith(".safetensors"):
            name = uri.rpartition("/")[2]
            return _cached_copy([_Object(uri, name, *storage.stat(uri))]) / name
        return _cached_copy(_folder_objects(uri))
    except (FileNotFoundError, PermissionError) as error:
        raise UsageError(f"--vae {uri} cannot be loaded: {error.strerror or error}") from error
    except (storage.Unavailable, storage.Conflict) as error:
        raise JobFailed(f"--vae {uri} could not be copied to this node: {error}") from error


def _folder_objects(uri: str) -> list[_Object]:
    found = [
        _Object(f"{uri}/{name}", name, size, version)
        for page in storage.list_objects(uri)
        for name, size, version in zip(page.paths, page.sizes, page.versions, strict=True)
        if "/" not in name
    ]
    objects = [one for one in found if _DOWNLOADED.fullmatch(one.name)]
    if not any(one.name.endswith(".safetensors") for one in objects):
        check_no_pickles(uri, (one.name for one in found))
    if not objects:
        raise FileNotFoundError(
            f"there is no config.json or .safetensors file of the diffusers layout below {uri}; give the VAE's own "
            "folder, or --subfolder"
        )
    return objects


def _cached_copy(objects: list[_Object]) -> Path:
    """Return the folder with copies of the objects; download them if no process of this node has."""
    key = hashlib.sha256(json.dumps(sorted(objects)).encode()).hexdigest()[:24]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "inpaint-encode")
    cache.mkdir(parents=True, exist_ok=True)
    copy, unfinished = cache / key, cache / f"{storage.TEMPORARY}{uuid.uuid4().hex}"
    with (cache / f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the system releases it if this process dies
        if copy.is_dir():
            return copy
        unfinished.mkdir()
        try:
            for one in objects:
                _copy_object(one, unfinished / one.name)
            return unfinished.rename(copy)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def _copy_object(source: _Object, path: Path) -> None:
    """Copy an object range by range, so that each range is retried by itself."""
    with path.open("xb") as file:
        while file.tell() < source.size:
            data, version = storage.read_range(source.uri, file.tell(), _RANGE_BYTES)
            if version != source.version:
                raise storage.Conflict(f"{source.uri} has changed during the download")
            file.write(data)
