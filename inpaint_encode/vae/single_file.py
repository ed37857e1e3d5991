"""Load a VAE from one ``.safetensors`` file, a VAE or a whole checkpoint: recognized by its header, without network.

Only the VAE's tensors are read. The same weights become the same model with the same hash, whatever the layout.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inpaint_encode.errors import UsageError

from .checkpoint_layouts import LAYOUTS, Layout, Shapes
from .diffusers_private import PrivateFunctionMissing
from .scaling import SCALINGS

if TYPE_CHECKING:
    from diffusers import ModelMixin

__all__ = ["check_no_pickles", "load_single_file"]

_PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pickle", ".pkl"}
_PREFIXES = ("first_stage_model.", "vae.")
"""Prefixes of the VAE's tensors inside a checkpoint."""
_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "conv1.", "conv2.", "bn.")
"""Prefixes of a VAE's tensors; files from training have others too, such as a loss."""
_CONTEXT = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
_BY_CONTEXT = {768: "sd1", 1024: "sd1", 1280: "sdxl", 2048: "sdxl"}
"""Model by the width of the text embedding that the checkpoint's denoiser takes: SD 1, SD 2, SDXL's refiner, SDXL."""


def check_no_pickles(vae: str, names: Iterable[str]) -> None:
    """Check that none of the file names has a suffix of pickles, which can run any code when they are loaded.

    Raises:
        UsageError: one has; the sentence says how to convert it.
    """
    for name in names:
        if Path(name).suffix.lower() in _PICKLES:
            raise UsageError(
                f"--vae {vae}: {Path(name).name} is a pickle, which can run any code; if you trust it, "
                "convert it once: torch.load(file, weights_only=True), get its state_dict, and write that with "
                "safetensors.torch.save_file"
            )


def load_single_file(name: str, path: Path, vae_family: str = "") -> ModelMixin:
    """Load the VAE of a file, in float32 on the CPU.

    Tensor names and shapes do not tell the scaling of an AutoencoderKL: SD 1 and SDXL are alike, and SD 3 and Flux.1.
    A checkpoint's denoiser does, or ``vae_family``. Otherwise the model's configuration has the scaling None.

    Args:
        name: the file as the user wrote it, for errors.
        path: the file on this node.
        vae_family: key of `inpaint_encode.vae.scaling.SCALINGS`; "" if not given.

    Raises:
        UsageError: the file is not a complete VAE in a supported layout, or ``vae_family`` does not fit it.
    """
    import diffusers
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        raise UsageError(f"--vae {name} is a single file, which must end in .safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            all_names = list(file.keys())
            all_shapes = {one: file.get_slice(one).get_shape() for one in all_names}
            prefix = next((one for one in _PREFIXES if any(key.startswith(one) for key in all_names)), "")
            shapes = {key.removeprefix(prefix): shape for key, shape in all_shapes.items() if key.startswith(prefix)}
            layout = next(filter(None, (layout_of(shapes) for layout_of in LAYOUTS)), None)
            if layout is None:
                raise UsageError(
                    f"--vae {name} has no VAE in a supported layout (AutoencoderKL, Flux.2, Wan, Sana's DC-AE, TAESD); "
                    f"its first tensors are {', '.join(sorted(shapes)[:3])}; give the model's diffusers folder"
                )
            layout.config.update(_scaling(name, layout, all_shapes, vae_family))
            wanted = [key for key in all_names if key.startswith(tuple(prefix + part for part in _PARTS))]
            tensors = {key.removeprefix(prefix): file.get_tensor(key).float() for key in wanted}
        vae = getattr(diffusers, layout.class_name).from_config(layout.config)
        vae.load_state_dict(layout.convert(tensors, layout.config), strict=True)
    except SafetensorError as error:
        raise UsageError(f"--vae {name} is not a safetensors file ({error})") from error
    except PrivateFunctionMissing as error:
        raise UsageError(f"--vae {name} cannot be converted: {error}; give the model's diffusers folder") from error
    except (KeyError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(f"--vae {name} is not a complete VAE, or has unexpected shapes ({reason})") from error
    return vae


def _scaling(name: str, layout: Layout, all_shapes: Shapes, vae_family: str) -> dict[str, Any]:
    """Return the configuration's scaling, by the VAE's shapes, the checkpoint's denoiser or ``vae_family``."""
    shape = layout.config.get("latent_channels"), len(layout.config.get("block_out_channels", ()))
    fitting = [family for family, one in SCALINGS.items() if (one.channels, one.levels) == shape]
    if layout.class_name != "AutoencoderKL":
        fitting = []
    # Shapes first: the x4 upscaler's denoiser takes the same text embedding as SD 2.
    detected = fitting[0] if len(fitting) == 1 else _model_of_denoiser(all_shapes)
    if vae_family and (vae_family not in fitting or detected not in ("", vae_family)):
        found = f"of {detected}" if detected else f"an {layout.class_name} with other shapes"
        raise UsageError(
            f"--vae-family {vae_family} does not fit --vae {name}, which is {found}; leave out --vae-family"
        )
    family = vae_family or detected
    if family not in fitting:
        return {}
    return {"scaling_factor": SCALINGS[family].scaling_factor, "shift_factor": SCALINGS[family].shift_factor}


def _model_of_denoiser(all_shapes: Shapes) -> str:
    """Return the model of a checkpoint's denoiser, "" without one."""
    if {"edm_mean", "edm_std"} <= all_shapes.keys():
        return "Playground v2.5"  # like SDXL, but its latents are normalized with these
    if _CONTEXT in all_shapes:
        return _BY_CONTEXT.get(all_shapes[_CONTEXT][1], "")
    if "model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight" in all_shapes:
        return "sd3"
    return "flux1" if "model.diffusion_model.double_blocks.0.img_attn.qkv.weight" in all_shapes else ""
