"""Weights in a bucket are brought to a node once, whichever of its processes asks first."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.settings import VaeSource
from inpaint_encode.stores import storage

from .pickles import refuse_pickles

__all__ = ["on_this_node"]

_WANTED = re.compile(r"config\.json|diffusion_pytorch_model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
"""Of a folder; no variants such as fp16, no pickles, no other parts of a pipeline."""

_PIECE = 64 * 2**20
"""Bytes of one request: there well within its time-out, and all of a file that memory holds."""


class _Object(NamedTuple):
    uri: str
    name: str
    size: int
    version: str


def on_this_node(source: VaeSource) -> str:
    """Return where ``source`` can be loaded from: a path on this node, or a hub id as it is.

    A copy is kept under the objects' ETags, so that other weights at the same place are another copy; delete copies
    as you like. Processes that ask at the same time wait for the first.

    Raises:
        UsageError: there is no such object, or it may not be read.
        JobFailed: the store does not answer, or the object changes meanwhile.
    """
    if not source.vae.startswith("s3://"):
        return source.vae.removeprefix("file://")
    uri = storage.join(source.vae.rstrip("/"), *([source.subfolder] if source.subfolder else []))
    try:
        single = uri.endswith(".safetensors")
        objects = [_Object(uri, uri.rpartition("/")[2], *storage.stat(uri))] if single else _of_folder(uri)
        folder = _copy_of(objects)
    except (FileNotFoundError, PermissionError) as error:
        raise UsageError(f"--vae {uri} cannot be loaded: {error.strerror or error}") from error
    except (storage.Unavailable, storage.Conflict) as error:
        raise JobFailed(f"--vae {uri} could not be brought to this node: {error}") from error
    return str(folder / objects[0].name) if single else str(folder)


def _of_folder(uri: str) -> list[_Object]:
    found = [
        _Object(f"{uri}/{name}", name, size, version)
        for page in storage.list_objects(uri)
        for name, size, version in zip(page.paths, page.sizes, page.versions, strict=True)
        if "/" not in name
    ]
    objects = [one for one in found if _WANTED.fullmatch(one.name)]
    if not any(one.name.endswith(".safetensors") for one in objects):
        refuse_pickles(uri, (one.name for one in found))
    if not objects:
        raise FileNotFoundError(
            f"there is no config.json or .safetensors file of the diffusers layout below {uri}; give the VAE's own "
            "folder, or --subfolder"
        )
    return objects


def _copy_of(objects: list[_Object]) -> Path:
    key = hashlib.sha256(json.dumps(sorted(objects)).encode()).hexdigest()[:24]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "inpaint-encode")
    cache.mkdir(parents=True, exist_ok=True)
    copy, unfinished = cache / key, cache / f"{storage.TEMPORARY}{uuid.uuid4().hex}"
    with _locked(cache / f"{key}.lock"):
        if not copy.is_dir():
            unfinished.mkdir()
            try:
                for one in objects:
                    _download(one, unfinished / one.name)
                unfinished.rename(copy)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return copy


def _download(wanted: _Object, path: Path) -> None:
    """Copy an object piece by piece, each a request that is tried again by itself."""
    with path.open("xb") as file:
        while file.tell() < wanted.size:
            data, version = storage.read_range(wanted.uri, file.tell(), _PIECE)
            if version != wanted.version:
                raise storage.Conflict(f"{wanted.uri} has changed meanwhile")
            file.write(data)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # given back by the system if this process dies
        yield
