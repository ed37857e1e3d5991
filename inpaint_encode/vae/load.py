"""Load a VAE from a folder, a single file or the hub: safetensors only, and no code that comes with a model."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import uuid
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from inpaint_encode.errors import EncodeError, JobFailed, UsageError
from inpaint_encode.metadata import RowMetadata, VaeMetadata
from inpaint_encode.stores import storage
from inpaint_encode.stores.redaction import check_credentials

from .checks import INDEX, check_config, check_files, check_index, check_size
from .registry import VAE_CLASSES, patch_statistics, vae_class_of, vae_metadata
from .single_file import check_no_pickles, load_single_file

if TYPE_CHECKING:
    from diffusers import ModelMixin

    from inpaint_encode.settings import VaeSource

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_DOWNLOADED = re.compile(r"config\.json|diffusion_pytorch_model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
"""Files of a folder that are downloaded: no variants such as fp16, and no other parts of a pipeline."""
_MAX_REASON = 300
"""Characters of a library's error in ours."""
_RANGE_BYTES = 64 * 2**20
"""Bytes per request. One of this size ends well within its time-out, and it is all that memory holds of the file."""


def load_vae(
    vae: str | os.PathLike[str] | VaeSource,
    *,
    subfolder: str = "",
    revision: str = "",
    vae_family: str = "",
    flux2_latents: Literal["packed", "plain"] = "packed",
) -> ModelMixin:
    """Load a VAE of a class in `inpaint_encode.vae.registry.VAE_CLASSES`, in float32 on the CPU, without gradients.

    Files on ``s3://`` are copied to this node once for all processes, into ``inpaint-encode`` below
    ``XDG_CACHE_HOME`` (default ``~/.cache``). Files on the hub are kept in the hub's own cache.

    Example::

        vae = load_vae("stabilityai/sdxl-vae", revision="main").to("cuda")
        latents = encode_for_inpaint(pixels, mask, vae)

    Args:
        vae: a folder in the diffusers layout, a ``.safetensors`` file (a VAE or a whole checkpoint) or a hub id.
            Folder and file may be on ``s3://``. Or a `inpaint_encode.EncodeJob`'s ``vae``, which has all options.
        subfolder: folder of the VAE inside a pipeline, usually "vae".
        revision: branch, tag or commit on the hub.
        vae_family: "sd1", "sdxl", "sd3" or "flux1": the model of a single file, where its shapes fit several models.
            It sets the scaling.
        flux2_latents: "packed" gives Flux.2 latents of 128 channels at 1/16, "plain" of 32 channels at 1/8.

    Raises:
        UsageError: there is no such model, its weights are pickles or incomplete, its class is not supported, or an
            option does not fit.
        JobFailed: the store does not answer.
    """
    if not isinstance(vae, str | os.PathLike):
        return load_vae(**dict(vae))
    name = os.fspath(vae)
    if flux2_latents not in ("packed", "plain"):
        raise UsageError(f"flux2_latents is packed or plain, not {flux2_latents!r}")
    check_no_pickles(name, [name])
    place, inner = name.removeprefix("file://"), subfolder
    if name.startswith("s3://"):
        place, inner = str(download("/".join(part for part in (name.rstrip("/"), subfolder) if part))), ""
    if not Path(place).is_file():
        model = _load_folder(name, place, inner, revision, vae_family)
    elif subfolder or revision:
        raise UsageError(f"--vae {name} is a single file; leave out --subfolder and --revision")
    else:
        model = load_single_file(name, Path(place), vae_family)
    if vae_class_of(model).packs_patches:
        mean, std = patch_statistics(model)
        model.register_to_config(flux2_latents=flux2_latents, latents_mean=mean, latents_std=std)
    return model.eval().requires_grad_(False)


def _load_folder(name: str, place: str, subfolder: str, revision: str, vae_family: str) -> ModelMixin:
    """Load from ``place``, a folder or a hub id, as the class that its configuration names."""
    import diffusers

    if vae_family:
        raise UsageError(
            f"--vae-family is for single files, but --vae {name} has a configuration with the scaling; leave out "
            "--vae-family"
        )
    at_hub = not Path(place).is_dir()
    if at_hub and not _HUB_ID.fullmatch(place):
        raise UsageError(
            f"--vae {name} cannot be loaded: there is no such folder or file on this node, and it is not a valid "
            "Hugging Face hub id"
        )
    where = {"subfolder": subfolder} if subfolder else {}
    if at_hub:
        _check_hub_token()
        where |= {"revision": revision} if revision else {}
    elif not [*Path(place, subfolder).glob("*.safetensors")]:
        check_no_pickles(name, (path.name for path in Path(place, subfolder).glob("*")))
    folder = None if at_hub else Path(place, subfolder)
    try:
        if folder:
            check_files(name, folder)
        config: dict[str, Any] = diffusers.AutoencoderKL.load_config(place, **where)  # reads any class's
        check_config(name, config)
        if not (class_name := str(config.get("_class_name", ""))):
            raise UsageError(
                f"--vae {name}: its config.json has no _class_name; give a VAE's own folder, or --subfolder"
            )
        vae_class_of(class_name, f"--vae {name}")
        if not hasattr(diffusers, class_name):
            available = [one for one in VAE_CLASSES if hasattr(diffusers, one)]
            raise UsageError(
                f"--vae {name} is of class {class_name}, which diffusers {diffusers.__version__} does not have; it has "
                f"{', '.join(available)}; install a newer diffusers"
            )
        if (index := _read_index(place, where)) is not None:
            check_index(name, index)
        weights = sum(path.stat().st_size for path in folder.glob("*.safetensors")) if folder else None
        check_size(name, getattr(diffusers, class_name), config, weights)
        model, loading = getattr(diffusers, class_name).from_pretrained(
            place,
            use_safetensors=True,
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,  # True needs the package accelerate, for a model that is loaded once
            output_loading_info=True,
            **where,
        )
    except EncodeError:
        raise
    except Exception as error:  # diffusers raises errors of many types for a file that is not valid
        raise UsageError(_explain(name, error, folder)) from error
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        count = f"{len(missing)} weight{'s' if len(missing) > 1 else ''}"
        raise UsageError(f"--vae {name} lacks {count} (the first: {missing[0]}); give a complete VAE")
    return model


def _explain(name: str, error: Exception, folder: Path | None) -> str:
    """Return why a folder, or a model of the hub if there is no folder, cannot be loaded."""
    reason = (" ".join(str(error).split()) or type(error).__name__)[:_MAX_REASON].rstrip(".")
    if folder and folder.is_relative_to(_cache()):
        reason += f"; the copy of its files is {folder}: delete it to download them again"
    if not folder:
        reason = f"there is no such folder on this node, and the Hugging Face hub says: {reason}"
    offline = not folder and os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    return (
        f"--vae {name} cannot be loaded: {reason}; give a folder in the diffusers layout with .safetensors "
        "weights, a single .safetensors file, or a hub id, and --subfolder if the VAE is a part of a pipeline"
        + "; HF_HUB_OFFLINE is set, so that only the hub's cache on this node was searched"
        * offline
    )


def _read_index(place: str, where: dict[str, str]) -> Any:
    """Return the index of a folder or a hub id whose weights are in several files; None for one file."""
    import diffusers

    class Index(diffusers.ConfigMixin):  # type: ignore[misc]
        config_name = INDEX

    try:
        return Index.load_config(place, **where)
    except OSError:
        if Path(place, where.get("subfolder", ""), INDEX).exists():
            raise
        return None


def _check_hub_token() -> None:
    try:
        check_credentials("HF_", "HUGGING_FACE_")
    except PermissionError as error:
        raise UsageError(str(error.strerror)) from None


def load_verified_vae(source: VaeSource, expected: VaeMetadata) -> tuple[ModelMixin, VaeMetadata]:
    """Load a VAE in float32 on the CPU and check that it is the one that the rows were encoded with.

    Args:
        source: where the VAE is.
        expected: the rows' VAE; its source, ``vae_family`` and latent form may differ.

    Returns:
        The VAE and its own metadata.

    Raises:
        UsageError: as `load_vae`.
        JobFailed: the weights or the configuration differ.
    """
    vae = load_vae(source)
    found = vae_metadata(vae, source)
    compared = [one.name for one in fields(VaeMetadata) if one.name not in ("vae_source", "vae_family", "latent_form")]
    differences = [
        f"{name} {getattr(found, name)} on this node, {getattr(expected, name)} in the output"
        for name in compared
        if getattr(found, name) != getattr(expected, name) and getattr(expected, name) != ""
    ]
    if differences:
        raise JobFailed(
            f"--vae {source.vae} is not the VAE that the output was encoded with: {'; '.join(differences)}; "
            "use the same files on every node, with --revision for a hub id"
        )
    return vae, found


def parse_vae_source(text: str, metadata: RowMetadata) -> VaeSource:
    """Parse a path, a URI or ``org/name[/subfolder][@revision]``, as in `VaeMetadata.vae_source`.

    Args:
        text: where the VAE is.
        metadata: of the rows; it has the form of Flux.2's latents and a single file's ``vae_family``.
    """
    from inpaint_encode.settings import VaeSource

    options: dict[str, Any] = {"flux2_latents": "packed" if metadata.vae.latent_form == "packed" else "plain"}
    if text.endswith(".safetensors"):
        options["vae_family"] = metadata.vae.vae_family
    if Path(text).exists() or Path(text).is_absolute() or "://" in text:
        return VaeSource(vae=text, **options)
    name, _, revision = text.partition("@")
    parts = name.split("/")
    return VaeSource(vae="/".join(parts[:2]), subfolder="/".join(parts[2:]), revision=revision, **options)


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
    cache = _cache()
    cache.mkdir(parents=True, exist_ok=True)
    copy, unfinished = cache / key, cache / f"{storage.TEMPORARY}{uuid.uuid4().hex}"
    with (cache / f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the system releases it if this process dies
        if copy.is_dir():
            if all((copy / one.name).is_file() and (copy / one.name).stat().st_size == one.size for one in objects):
                return copy
            shutil.rmtree(copy)  # a file was cut, for example on a full disk
        unfinished.mkdir()
        try:
            for one in objects:
                with (unfinished / one.name).open("xb") as file:
                    while file.tell() < one.size:  # range by range, so that each range is retried by itself
                        data, version = storage.read_range(one.uri, file.tell(), _RANGE_BYTES)
                        if version != one.version:
                            raise storage.Conflict(f"{one.uri} has changed during the download")
                        file.write(data)
            return unfinished.rename(copy)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "inpaint-encode")
