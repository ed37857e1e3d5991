"""One VAE on one device: load it, learn its facts from a real encode, encode batches, as the contract says.

Usable without Ray: `encode_for_inpaint` is the whole transform as one function on tensors.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .errors import UsageError
from .settings import VaeSource
from .transform import binarise_mask, crop_box, grow_mask, neutralise, resize_mask, to_vae_range

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

__all__ = [
    "InpaintLatents",
    "VaeFacts",
    "compute_dtype",
    "encode_for_inpaint",
    "load_vae",
    "posterior_mean",
    "spatial_ratio",
    "vae_facts",
    "warm_up",
    "weights_sha256",
]


class InpaintLatents(NamedTuple):
    """What ComfyUI calls a LATENT made for inpainting."""

    samples: Tensor
    """float32 ``[B, C, h, w]``: the posterior's mean, neither scaled nor shifted."""
    noise_mask: Tensor
    """float32 ``[B, 1, H, W]``: 1 where the sampler may repaint, at the pixel size of the crop."""


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


def encode_for_inpaint(pixels: Tensor, mask: Tensor, vae: AutoencoderKL, grow_mask_by: int = 6) -> InpaintLatents:
    """Encode images for inpainting: resize and crop the mask and the image, grey out, grow, encode.

    Args:
        pixels: float32 ``[B, H, W, 3]`` in 0..1; channels after the third are dropped.
        mask: float32 ``[B, h, w]`` or ``[1, h, w]`` in 0..1, 1 = repaint; one mask serves every image, and its
            size may differ from the images'.
        vae: a diffusers ``AutoencoderKL``; it runs on the device and in the type that it is in.
        grow_mask_by: side in pixels of the square that dilates ``noise_mask``, 0..64.

    Raises:
        ValueError: the batches do not match, a side is smaller than the VAE's ratio, or the growth is out of range.
    """
    count, height, width = pixels.shape[:3]
    if mask.shape[0] not in (1, count):
        raise ValueError(f"{mask.shape[0]} masks for {count} images; give one mask for each image, or one for all")
    crop = crop_box(height, width, spatial_ratio(vae))
    rows, columns = crop.slices
    binary = binarise_mask(resize_mask(mask, height, width)[:, rows, columns])
    samples = posterior_mean(vae, neutralise(pixels[:, rows, columns, :3], binary))
    noise_mask = grow_mask(binary, grow_mask_by).unsqueeze(1).expand(count, -1, -1, -1)
    return InpaintLatents(samples, noise_mask)


def load_vae(source: VaeSource) -> AutoencoderKL:
    """Load a diffusers ``AutoencoderKL`` in float32 on the CPU, from safetensors only.

    Raises:
        UsageError: there is no such model, its weights are pickles, or its class is another.
    """
    from diffusers import AutoencoderKL

    where = {name: value for name in ("subfolder", "revision") if (value := getattr(source, name))}
    try:
        config = AutoencoderKL.load_config(source.vae, **where)
        _refuse_other_classes(source, config)
        vae, loading = AutoencoderKL.from_pretrained(
            source.vae,
            use_safetensors=True,
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,  # True needs another package, for a model that is loaded once
            output_loading_info=True,
            **where,
        )
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--vae {source.vae} cannot be loaded: {str(error).splitlines()[0]}; give a folder in the diffusers "
            "layout with .safetensors weights, or a hub id, and --subfolder if the VAE is a part of a pipeline"
        ) from error
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise UsageError(f"--vae {source.vae} lacks {len(missing)} of its weights, the first is {missing[0]}")
    return vae.eval().requires_grad_(False)


def _refuse_other_classes(source: VaeSource, config: Any) -> None:
    found = config.get("_class_name", "AutoencoderKL")
    if found != "AutoencoderKL":
        raise UsageError(f"--vae {source.vae} is a {found}; only AutoencoderKL is known so far")


def spatial_ratio(vae: AutoencoderKL) -> int:
    """How many pixels of a side become one latent, from the model's configuration."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def posterior_mean(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Encode float32 ``[B, H, W, 3]`` in 0..1 to float32 ``[B, C, h, w]``, unscaled.

    ``2p - 1`` is taken in float32 before the cast to the VAE's type, and no autocast may interfere.
    """
    parameter = next(vae.parameters())
    inputs = to_vae_range(pixels.to(parameter.device, torch.float32)).to(parameter.dtype)
    with torch.inference_mode(), torch.autocast(parameter.device.type, enabled=False):
        samples: Tensor = vae.encode(inputs.contiguous()).latent_dist.mode().float()
    return samples


def warm_up(vae: AutoencoderKL) -> None:
    """Encode one small image and hold the result against the configuration.

    Raises:
        UsageError: the latent's shape is not ``[C, H / ratio, W / ratio]``, or its values are not finite.
    """
    ratio, channels = spatial_ratio(vae), int(vae.config.latent_channels)
    height, width = 4 * ratio, 6 * ratio
    latent = posterior_mean(vae, torch.full((1, height, width, 3), 0.5))
    if tuple(latent.shape) != (1, channels, 4, 6):
        raise UsageError(
            f"the VAE's configuration promises {channels} channels at 1/{ratio} of the size, but an image of "
            f"{height} x {width} became a latent of {list(latent.shape[1:])}; the configuration is not the weights'"
        )
    if not bool(latent.isfinite().all()):
        raise UsageError("the VAE turns a plain grey image into values that are not finite; its weights are broken")


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


def compute_dtype(setting: str, device: torch.device, config: Any) -> torch.dtype:
    """The type to compute in; ``auto`` is bfloat16 on GPUs of compute capability 8.0 and up, else float32.

    Raises:
        UsageError: float16 is asked for, and the model's ``force_upcast`` says that it overflows in it.
    """
    if setting == "auto":
        capable = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if capable else torch.float32
    if setting == "float16" and config.get("force_upcast"):
        raise UsageError(
            "this VAE's configuration says force_upcast: it overflows in float16; use --dtype bfloat16 or float32"
        )
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[setting]
