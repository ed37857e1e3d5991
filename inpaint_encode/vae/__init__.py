"""One VAE on one device, without Ray: `load` it, learn its `facts`, `encode` with it. `families` has every class."""

from .decode import decoded
from .encode import Posterior, compute_dtype, posterior, to_vae_range, warm_up
from .facts import VaeFacts, crop_multiple, latent_channels, spatial_ratio, vae_facts, weights_sha256
from .load import load_vae
from .registry import FAMILIES, Family, family_of
from .scaling import refuse_unscalable, settled, to_scaled, to_unscaled

__all__ = [
    "FAMILIES",
    "Family",
    "Posterior",
    "VaeFacts",
    "compute_dtype",
    "crop_multiple",
    "decoded",
    "family_of",
    "latent_channels",
    "load_vae",
    "posterior",
    "refuse_unscalable",
    "settled",
    "spatial_ratio",
    "to_scaled",
    "to_unscaled",
    "to_vae_range",
    "vae_facts",
    "warm_up",
    "weights_sha256",
]
