"""One VAE on one device, without Ray: `load` it, learn its `facts`, `encode` with it. `families` has every class."""

from .decode import decoded
from .encode import InpaintLatents, Posterior, compute_dtype, encode_for_inpaint, posterior, warm_up
from .facts import VaeFacts, crop_multiple, latent_channels, spatial_ratio, vae_facts, weights_sha256
from .families import FAMILIES, Family, family_of
from .load import load_vae
from .scaling import refuse_unscalable, settled, to_scaled, to_unscaled

__all__ = [
    "FAMILIES",
    "Family",
    "InpaintLatents",
    "Posterior",
    "VaeFacts",
    "compute_dtype",
    "crop_multiple",
    "decoded",
    "encode_for_inpaint",
    "family_of",
    "latent_channels",
    "load_vae",
    "posterior",
    "refuse_unscalable",
    "settled",
    "spatial_ratio",
    "to_scaled",
    "to_unscaled",
    "vae_facts",
    "warm_up",
    "weights_sha256",
]
