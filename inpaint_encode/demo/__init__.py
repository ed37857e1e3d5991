"""The demonstration on one machine: an S3 server, image/mask pairs, a small VAE, and a job."""

from pathlib import Path

__all__ = ["VAE"]

VAE = Path(__file__).parent / "vae"
"""Folder of a small AutoencoderKL whose latents decode to recognizable pictures; its README.md states its limits."""
