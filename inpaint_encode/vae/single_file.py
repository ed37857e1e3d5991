"""A VAE in a single ``.safetensors`` file, alone or inside a checkpoint: recognised by its header, configured offline.

What is not the VAE is not read. Whatever the layout, the same weights become the same model, with the same hash.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from inpaint_encode.errors import UsageError
from inpaint_encode.settings import VaeSource

from .layouts import LAYOUTS, UNMAPPED, Layout, Shapes
from .scaling import SCALINGS

if TYPE_CHECKING:
    from diffusers import ModelMixin
    from torch import Tensor

__all__ = ["load_single_file"]

_PREFIXES = ("first_stage_model.", "vae.")
"""Of the VAE's tensors inside a checkpoint."""
_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "conv1.", "conv2.", "bn.")
"""Of a VAE; training leaves others, such as a loss, in files of their own layout."""
_CONTEXT = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
_BY_CONTEXT = {768: "sd1", 1024: "sd1", 1280: "sdxl", 2048: "sdxl"}
"""By the width of the text's embedding that the denoiser in a checkpoint takes: SD 1, SD 2, SDXL's refiner, SDXL."""


def load_single_file(source: VaeSource, path: Path) -> ModelMixin:
    """Load the VAE that is in the file at ``path``, in float32 on the CPU.

    Of an AutoencoderKL, names and shapes do not tell the scaling, of SD 1 from SDXL's or of SD 3 from Flux.1's. The
    denoiser beside it in a checkpoint does, or ``source.vae_family``; else it is None in the model's configuration.

    Raises:
        UsageError: it is no whole VAE of a layout that is known here, or ``vae_family`` cannot be its family.
    """
    import diffusers
    from safetensors import SafetensorError

    if path.suffix != ".safetensors" or source.subfolder or source.revision:
        raise UsageError(
            f"--vae {source.vae} is a single file, which must end in .safetensors and has no --subfolder or --revision"
        )
    try:
        shapes = _shapes(path)
        prefix = next((one for one in _PREFIXES if any(name.startswith(one) for name in shapes)), "")
        layout = _recognised(source, _below(prefix, shapes))
        layout.config.update(_scaling(source, layout, shapes))
        vae = getattr(diffusers, layout.class_name).from_config(layout.config)
        vae.load_state_dict(layout.convert(_tensors(path, prefix), layout.config), strict=True)
    except SafetensorError as error:
        raise UsageError(f"--vae {source.vae} is no safetensors file: {error}") from error
    except (KeyError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(f"--vae {source.vae} has not all of a VAE, or another's shapes: {reason}") from error
    return vae


def _shapes(path: Path) -> Shapes:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - it is no mapping


def _below(prefix: str, shapes: Shapes) -> Shapes:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def _tensors(path: Path, prefix: str) -> dict[str, Tensor]:
    from safetensors import safe_open

    parts = tuple(prefix + part for part in _PARTS)
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(parts)]  # noqa: SIM118
        return {name.removeprefix(prefix): file.get_tensor(name).float() for name in names}


def _recognised(source: VaeSource, shapes: Shapes) -> Layout:
    for name, is_it in UNMAPPED.items():
        if is_it(shapes):
            raise UsageError(
                f"--vae {source.vae} looks like {name} in a layout that is not known here; give its diffusers folder"
            )
    found = next(filter(None, (of(shapes) for of in LAYOUTS)), None)
    if found is None:
        raise UsageError(
            f"--vae {source.vae} holds no VAE in a layout that is known here: AutoencoderKL, Flux.2, Wan, Sana's "
            f"DC-AE, TAESD; its tensors begin with {', '.join(sorted(shapes)[:3])}; give a diffusers folder"
        )
    return found


def _scaling(source: VaeSource, layout: Layout, shapes: Shapes) -> dict[str, Any]:
    """What settles the scaling, if anything does."""
    shape = layout.config.get("latent_channels"), len(layout.config.get("block_out_channels", ()))
    fitting = [name for name, one in SCALINGS.items() if (one.channels, one.levels) == shape]
    if layout.class_name != "AutoencoderKL":
        fitting = []
    told = fitting[0] if len(fitting) == 1 else _denoiser(shapes)  # the x4 upscaler's takes the text of SD 2
    if source.vae_family and (source.vae_family not in fitting or told not in ("", source.vae_family)):
        raise UsageError(
            f"--vae-family {source.vae_family}, but --vae {source.vae} is "
            + (f"of {told}" if told else f"an {layout.class_name} of other shapes")
            + "; leave --vae-family out"
        )
    named = source.vae_family or told
    if named not in fitting:
        return {}
    return {"scaling_factor": SCALINGS[named].scaling_factor, "shift_factor": SCALINGS[named].shift_factor}


def _denoiser(shapes: Shapes) -> str:
    """The model that a checkpoint's denoiser is of, "" without one."""
    if {"edm_mean", "edm_std"} <= shapes.keys():
        return "Playground v2.5"  # SDXL in all else, and it takes latents that are normalised by these
    if _CONTEXT in shapes:
        return _BY_CONTEXT.get(shapes[_CONTEXT][1], "")
    if "model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight" in shapes:
        return "sd3"
    return "flux1" if "model.diffusion_model.double_blocks.0.img_attn.qkv.weight" in shapes else ""
