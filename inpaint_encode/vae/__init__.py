"""One VAE on one device, without Ray: `load` it, learn its `facts`, `encode` with it."""

from .encode import InpaintLatents, Posterior, compute_dtype, encode_for_inpaint, posterior, warm_up
from .facts import VaeFacts, spatial_ratio, vae_facts, weights_sha256
from .load import load_vae

__all__ = [
    "InpaintLatents",
    "Posterior",
    "VaeFacts",
    "compute_dtype",
    "encode_for_inpaint",
    "load_vae",
    "posterior",
    "spatial_ratio",
    "vae_facts",
    "warm_up",
    "weights_sha256",
]
