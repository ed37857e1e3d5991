"""Small models with random weights: at least one of every VAE class, built by diffusers."""

from pathlib import Path
from typing import Any

BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
KL = {**BLOCKS, "block_out_channels": (8,) * 4, "norm_num_groups": 4, "layers_per_block": 1}
WAN = {"base_dim": 4, "num_res_blocks": 1}
DC_LEVELS = (8,) * 5 + (32,)
DC = {
    "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "encoder_block_out_channels": DC_LEVELS,
    "decoder_block_out_channels": DC_LEVELS,
    "encoder_layers_per_block": (1,) * 6,
    "decoder_layers_per_block": (1,) * 6,
    "attention_head_dim": 4,
    "scaling_factor": 0.41407,
}

# name: (class, configuration, ratio, crop multiple, channels)
SMALL: dict[str, tuple[str, dict[str, Any], int, int, int]] = {
    "AutoencoderKL": ("AutoencoderKL", KL, 8, 8, 4),
    "SD 3": ("AutoencoderKL", KL | {"latent_channels": 16, "use_quant_conv": False}, 8, 8, 16),
    "x4 upscaler": (
        "AutoencoderKL",
        KL | {name: KL[name][:3] for name in ("down_block_types", "up_block_types", "block_out_channels")},
        4,
        4,
        4,
    ),
    "AutoencoderKLFlux2": ("AutoencoderKLFlux2", KL, 16, 16, 128),
    "AutoencoderTiny": (
        "AutoencoderTiny",
        {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4},
        8,
        8,
        4,
    ),
    "AutoencoderDC": ("AutoencoderDC", DC, 32, 32, 32),
    "AutoencoderKLQwenImage": ("AutoencoderKLQwenImage", WAN, 8, 8, 16),
    "AutoencoderKLQwenImage21": ("AutoencoderKLQwenImage21", WAN | {"decoder_base_dim": 4}, 16, 16, 64),
    "Wan 2.1": ("AutoencoderKLWan", WAN, 8, 8, 16),
    "Wan 2.2": (
        "AutoencoderKLWan",
        WAN
        | {"z_dim": 48, "is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2}
        | {"scale_factor_spatial": 16, "latents_mean": [0.1] * 48, "latents_std": [2.0] * 48},
        16,
        16,
        48,
    ),
    "Wan of three levels": (
        "AutoencoderKLWan",
        WAN | {"dim_mult": [1, 2, 4], "temperal_downsample": [False, True], "scale_factor_spatial": 8},
        4,
        4,
        16,
    ),
    "AutoencoderKLHunyuanImage": (
        "AutoencoderKLHunyuanImage",
        {"in_channels": 3, "out_channels": 3, "latent_channels": 16, "block_out_channels": (32,) * 6}
        | {"layers_per_block": 1, "spatial_compression_ratio": 32, "sample_size": 384, "scaling_factor": 0.75289},
        32,
        32,
        16,
    ),
    "AsymmetricAutoencoderKL": (
        "AsymmetricAutoencoderKL",
        {"down_block_types": BLOCKS["down_block_types"], "down_block_out_channels": (8,) * 4, "norm_num_groups": 4}
        | {"up_block_types": BLOCKS["up_block_types"][:3], "up_block_out_channels": (8,) * 3},
        8,
        8,
        4,
    ),
}


def small_vae(name: str) -> Any:
    """Build the model; Flux.2's running statistics are made to differ from 0 and 1."""
    import diffusers
    import torch

    kind, config, *_ = SMALL[name]
    torch.manual_seed(0)
    vae = getattr(diffusers, kind)(**config).eval().requires_grad_(False)
    if kind == "AutoencoderKLFlux2":
        vae.bn.running_mean.normal_()
        vae.bn.running_var.uniform_(0.5, 2.0)
    return vae


def saved(name: str, folder: Path) -> str:
    """Save the model in the diffusers layout."""
    small_vae(name).save_pretrained(folder)
    return str(folder)


def encoded(name: str, vae: Any, pixels: Any) -> Any:
    """Encode one image, ``pixels`` ``[H, W, 3]`` in 0..1, with diffusers only; return latents ``[C, h, w]``.

    Written for each class as its pipeline does it.
    """
    import torch

    inputs = (2 * pixels - 1).permute(2, 0, 1)[None]
    kind = type(vae).__name__
    with torch.no_grad():
        if kind == "AutoencoderTiny":
            return vae.encode(inputs).latents[0]
        if kind == "AutoencoderDC":
            return vae.encode(inputs).latent[0]
        if kind == "AutoencoderKLQwenImage21":
            inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1)
        if kind in ("AutoencoderKLWan", "AutoencoderKLQwenImage", "AutoencoderKLQwenImage21"):
            return vae.encode(inputs[:, :, None]).latent_dist.mode()[0, :, 0]
        latent = vae.encode(inputs).latent_dist.mode()
        return vae.bn(_patches(latent))[0] if kind == "AutoencoderKLFlux2" else latent[0]


def _patches(latent: Any) -> Any:
    """As Flux.2's pipeline packs them: ``[B, C, h, w]`` to ``[B, 4C, h / 2, w / 2]``."""
    batch, channels, height, width = latent.shape
    cells = latent.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
    return cells.reshape(batch, channels * 4, height // 2, width // 2)


def as_image(vae: Any, latent: Any) -> Any:
    """Decode one latent ``[C, h, w]`` with diffusers only; return ``[H, W, 3]`` in 0..1. The inverse of `encoded`."""
    import torch

    kind, latents = type(vae).__name__, latent[None]
    with torch.no_grad():
        if kind == "AutoencoderKLFlux2":
            deviation = torch.sqrt(vae.bn.running_var + vae.config.batch_norm_eps)
            latents = _unpatched(latents * deviation.view(1, -1, 1, 1) + vae.bn.running_mean.view(1, -1, 1, 1))
        if kind in ("AutoencoderKLWan", "AutoencoderKLQwenImage", "AutoencoderKLQwenImage21"):
            image = vae.decode(latents[:, :, None]).sample[:, :3, 0]
        else:
            image = vae.decode(latents).sample
    return (image[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 0)


def _unpatched(latent: Any) -> Any:
    """The inverse of `_patches`."""
    batch, channels, height, width = latent.shape
    cells = latent.view(batch, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
    return cells.reshape(batch, channels // 4, height * 2, width * 2)
