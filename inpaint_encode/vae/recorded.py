"""The VAE that an output was made by, from what ``_job.json`` and every data file say of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inpaint_encode.errors import JobFailed
from inpaint_encode.settings import VaeSource

from .facts import VaeFacts, vae_facts
from .load import load_vae

if TYPE_CHECKING:
    from diffusers import ModelMixin

__all__ = ["load_expected", "recorded_facts", "recorded_source"]


def recorded_source(spelled: str, made_by: Mapping[str, Any]) -> VaeSource:
    """Read paths and URIs as they are, and ``org/name`` or ``org/name/subfolder``, with ``@revision`` or not.

    Args:
        spelled: as `VaeFacts.vae_source` has it.
        made_by: how the rows were made, which says in which form the VAE's latents are stored.
    """
    form: dict[str, Any] = {"flux2_latents": "packed" if made_by.get("latent_form") == "packed" else "plain"}
    if spelled.endswith(".safetensors"):
        form["vae_family"] = made_by.get("vae_family", "")
    if Path(spelled).exists() or Path(spelled).is_absolute() or "://" in spelled:
        return VaeSource(vae=spelled, **form)
    name, _, revision = spelled.partition("@")
    parts = name.split("/")
    return VaeSource(vae="/".join(parts[:2]), subfolder="/".join(parts[2:]), revision=revision, **form)


def recorded_facts(made_by: Mapping[str, Any]) -> dict[str, Any]:
    """What the VAE must be, by the names that the output has; where it is, and by what it was told, may differ."""
    names = {one.name for one in fields(VaeFacts)} - {"vae_source", "vae_family", "latent_form"}
    return {name: made_by[name] for name in names & made_by.keys()}


def load_expected(source: VaeSource, expected: Mapping[str, Any]) -> tuple[ModelMixin, VaeFacts]:
    """Load a VAE in float32 on the CPU, and make sure that it is the one the job was begun with.

    Args:
        source: where the VAE is.
        expected: values of `VaeFacts` by name, as the job was begun with; what is not there is not compared.

    Raises:
        UsageError: as `load_vae`.
        JobFailed: this node has another VAE under the same name, by its weights or its configuration.
    """
    vae = load_vae(source)
    facts = vae_facts(vae, source)
    here = facts.as_dict()
    if others := [name for name, value in expected.items() if here[name] != value]:
        differences = "; ".join(f"{name} {here[name]} on this node, {expected[name]}" for name in others)
        raise JobFailed(
            f"--vae {source.vae} is another VAE than where the job was begun: {differences} there; "
            "give a --revision, or the same folder on every node"
        )
    return vae, facts
