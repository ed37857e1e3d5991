"""The VAE that an output was encoded with, found and checked by the output's metadata."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inpaint_encode.errors import JobFailed
from inpaint_encode.metadata import RowMetadata, VaeMetadata
from inpaint_encode.settings import VaeSource

from .load import load_vae
from .properties import vae_metadata

if TYPE_CHECKING:
    from diffusers import ModelMixin

__all__ = ["load_expected", "recorded_source"]


def recorded_source(spelled: str, metadata: RowMetadata) -> VaeSource:
    """Parse a path, a URI or ``org/name[/subfolder][@revision]`` as `VaeMetadata.vae_source` has it.

    Args:
        spelled: where the VAE is.
        metadata: of the rows; it has the latent form and the family.
    """
    form: dict[str, Any] = {"flux2_latents": "packed" if metadata.vae.latent_form == "packed" else "plain"}
    if spelled.endswith(".safetensors"):
        form["vae_family"] = metadata.vae.vae_family
    if Path(spelled).exists() or Path(spelled).is_absolute() or "://" in spelled:
        return VaeSource(vae=spelled, **form)
    name, _, revision = spelled.partition("@")
    parts = name.split("/")
    return VaeSource(vae="/".join(parts[:2]), subfolder="/".join(parts[2:]), revision=revision, **form)


def load_expected(source: VaeSource, expected: VaeMetadata) -> tuple[ModelMixin, VaeMetadata]:
    """Load a VAE in float32 on the CPU and check that it is the one that the rows were encoded with.

    Args:
        source: where the VAE is.
        expected: the rows' VAE; its source, family and latent form may differ.

    Raises:
        UsageError: as `load_vae`.
        JobFailed: the weights or the configuration differ.
    """
    vae = load_vae(source)
    found = vae_metadata(vae, source)
    compared = [one.name for one in fields(VaeMetadata) if one.name not in ("vae_source", "vae_family", "latent_form")]
    differences = [
        f"{name} {getattr(found, name)} on this node, {getattr(expected, name)} there"
        for name in compared
        if getattr(found, name) != getattr(expected, name) and getattr(expected, name) != ""
    ]
    if differences:
        raise JobFailed(
            f"--vae {source.vae} is not the VAE that the output was encoded with: {'; '.join(differences)}; "
            "give a --revision, or the same folder on every node"
        )
    return vae, found
