"""Metadata of the rows that tests make."""

from dataclasses import fields, replace
from typing import Any

from inpaint_encode.metadata import RowMetadata, VaeMetadata
from inpaint_encode.settings import VaeSource
from inpaint_encode.vae.registry import vae_metadata

VAE = VaeMetadata(
    vae_class="AutoencoderKL",
    vae_source="a/vae",
    weights_sha256="0" * 64,
    config_sha256="1" * 64,
    vae_scale_factor=8,
    crop_multiple=8,
    latent_channels=4,
    scaling_factor=0.18215,
)
_VAE_FIELDS = {one.name for one in fields(VaeMetadata)}


def row_metadata(vae: VaeMetadata = VAE, **changes: Any) -> RowMetadata:
    """Return metadata of rows with these fields of `RowMetadata` and `VaeMetadata`; ``tile`` is None by default."""
    return changed(RowMetadata(vae=vae, tile=None), **changes)


def changed(metadata: RowMetadata, **changes: Any) -> RowMetadata:
    """Return ``metadata`` with other values of its fields, or of its VAE's."""
    of_vae = {name: value for name, value in changes.items() if name in _VAE_FIELDS}
    rest = {name: value for name, value in changes.items() if name not in of_vae}
    return replace(metadata, vae=replace(metadata.vae, **of_vae), **rest)


def metadata_for(vae: Any, **changes: Any) -> RowMetadata:
    """Return metadata of the rows that a loaded VAE makes."""
    return row_metadata(vae_metadata(vae, VaeSource(vae="a/test")), **changes)
