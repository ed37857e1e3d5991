"""A first look on one machine: a bucket, pairs to put into it, a VAE, and a job on them."""

from pathlib import Path

__all__ = ["VAE"]

VAE = Path(__file__).parent / "vae"
"""Folder of a small AutoencoderKL whose latents decode to recognisable pictures; its README.md says what it is not."""
