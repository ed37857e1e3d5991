"""What a VAE says of itself, and what its weights are."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from inpaint_encode.settings import VaeSource

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

__all__ = ["VaeFacts", "spatial_ratio", "vae_facts", "weights_sha256"]


@dataclass(frozen=True)
class VaeFacts:
    """What a row's reader must know of the VAE that made it."""

    vae_class: str
    vae_source: str
    weights_sha256: str
    ratio: int
    latent_channels: int
    scaling_factor: float | None
    shift_factor: float | None
    latents_mean: list[float] | None
    latents_std: list[float] | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def spatial_ratio(vae: AutoencoderKL) -> int:
    """How many pixels of a side become one latent, from the model's configuration."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def vae_facts(vae: AutoencoderKL, source: VaeSource) -> VaeFacts:
    """Read the facts from a loaded VAE's configuration and weights."""
    config = vae.config
    return VaeFacts(
        vae_class=type(vae).__name__,
        vae_source="/".join(part for part in (source.vae, source.subfolder) if part)
        + (f"@{source.revision}" if source.revision else ""),
        weights_sha256=weights_sha256(vae),
        ratio=spatial_ratio(vae),
        latent_channels=int(config.latent_channels),
        scaling_factor=config.get("scaling_factor"),
        shift_factor=config.get("shift_factor"),
        latents_mean=config.get("latents_mean"),
        latents_std=config.get("latents_std"),
    )


def weights_sha256(vae: AutoencoderKL) -> str:
    """SHA-256 over the state dict in the order of its names: each name, its shape, and its values as float32."""
    digest = hashlib.sha256()
    for name, tensor in sorted(vae.state_dict().items()):
        values = tensor.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{list(values.shape)}".encode())
        digest.update(values.numpy().tobytes() if values.ndim == 0 else memoryview(values.numpy()).cast("B"))
    return digest.hexdigest()
