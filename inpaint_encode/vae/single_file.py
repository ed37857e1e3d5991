"""Load a VAE from one ``.safetensors`` file, a VAE or a whole checkpoint: recognized by its header, without network.

Only the VAE's tensors are read. The same weights become the same model with the same hash, whatever the layout.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from inpaint_encode.errors import EncodeError, UsageError

from .checks import check_config, check_size
from .latents import SCALINGS

if TYPE_CHECKING:
    from diffusers import ModelMixin
    from torch import Tensor

_PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pickle", ".pkl"}
_PREFIXES = ("first_stage_model.", "vae.")
"""Prefixes of the VAE's tensors inside a checkpoint."""
_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "conv1.", "conv2.", "bn.")
"""Prefixes of a VAE's tensors; files from training have others too, such as a loss."""
_CONTEXT = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
_BY_CONTEXT = {768: "sd1", 1024: "sd1", 1280: "sdxl", 2048: "sdxl"}
"""Model by the width of the text embedding that the checkpoint's denoiser takes: SD 1, SD 2, SDXL's refiner, SDXL."""

Shapes = Mapping[str, Sequence[int]]
"""Shapes of the tensors, by name."""

Tensors = dict[str, "Tensor"]


class Layout(NamedTuple):
    """How to load a file: the class in diffusers, its configuration, and how to rename the tensors."""

    class_name: str
    config: dict[str, Any]
    convert: Callable[[Tensors, dict[str, Any]], Tensors]
    """Takes the tensors and the configuration; returns the tensors under diffusers' names."""


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


def load_single_file(name: str, path: Path, vae_family: str) -> ModelMixin:
    """Load the VAE of a file, in float32 on the CPU.

    Tensor names and shapes do not tell the scaling of an AutoencoderKL: SD 1 and SDXL are alike, and SD 3 and Flux.1.
    A checkpoint's denoiser does, or ``vae_family``. Otherwise the model's configuration has the scaling None.

    Args:
        name: the file as the user wrote it, for errors.
        path: the file on this node.
        vae_family: key of `inpaint_encode.vae.latents.SCALINGS`; "" if not given.

    Raises:
        UsageError: the file is not a complete VAE in a supported layout, or ``vae_family`` does not fit it.
    """
    import diffusers
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        raise UsageError(f"--vae {name} is a single file, which must end in .safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            all_shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118  # not iterable
            prefix = next((one for one in _PREFIXES if any(key.startswith(one) for key in all_shapes)), "")
            shapes = {key.removeprefix(prefix): shape for key, shape in all_shapes.items() if key.startswith(prefix)}
            layout = next(filter(None, (layout_of(shapes) for layout_of in LAYOUTS)), None)
            if layout is None:
                raise UsageError(
                    f"--vae {name} has no VAE in a supported layout (AutoencoderKL, Flux.2, Wan, Sana's DC-AE, TAESD); "
                    f"its first tensors are {', '.join(sorted(shapes)[:3])}; give the model's diffusers folder"
                )
            layout.config.update(_scaling(name, layout, all_shapes, vae_family))
            wanted = [key for key in all_shapes if key.startswith(tuple(prefix + part for part in _PARTS))]
            tensors = {key.removeprefix(prefix): file.get_tensor(key).float() for key in wanted}
        check_config(name, layout.config)
        check_size(name, getattr(diffusers, layout.class_name), layout.config, path.stat().st_size)
        vae = getattr(diffusers, layout.class_name).from_config(layout.config)
        vae.load_state_dict(layout.convert(tensors, layout.config), strict=True)
    except SafetensorError as error:
        raise UsageError(f"--vae {name} is not a safetensors file ({error})") from error
    except ImportError as error:
        raise UsageError(f"--vae {name} cannot be converted: {error}; give the model's diffusers folder") from error
    except EncodeError:
        raise
    except Exception as error:  # shapes that do not fit together fail in many ways
        reason = (" ".join(str(error).split()) or type(error).__name__)[:300]
        raise UsageError(f"--vae {name} is not a complete VAE, or has unexpected shapes ({reason})") from error
    return vae


def _scaling(name: str, layout: Layout, all_shapes: Shapes, vae_family: str) -> dict[str, Any]:
    """Return the configuration's scaling, by the VAE's shapes, the checkpoint's denoiser or ``vae_family``."""
    shape = layout.config.get("latent_channels"), len(layout.config.get("block_out_channels", ()))
    scalings = SCALINGS if layout.class_name == "AutoencoderKL" else {}
    fitting = [family for family, one in scalings.items() if (one.channels, one.levels) == shape]
    # Shapes first: the x4 upscaler's denoiser takes the same text embedding as SD 2.
    detected = fitting[0] if len(fitting) == 1 else _model_of_denoiser(all_shapes)
    if vae_family and (vae_family not in fitting or detected not in ("", vae_family)):
        found = f"a VAE of {detected}" if detected else f"an {layout.class_name} with other shapes"
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


def _unchanged(tensors: Tensors, _config: dict[str, Any]) -> Tensors:
    return tensors


_OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Names of the projections of attention in diffusers until 2023."""


def _rename_old_attention(tensors: Tensors, _config: dict[str, Any]) -> Tensors:
    return {_replace_all(name, _OLD_ATTENTION): tensor for name, tensor in tensors.items()}


def _replace_all(name: str, parts: Mapping[str, str]) -> str:
    for old, new in parts.items():
        name = name.replace(old, new)
    return name


def _kl_layout(shapes: Shapes) -> Layout | None:
    """AutoencoderKL and Flux.2's, which have the same encoder, in the layout of latent diffusion or of diffusers.

    Shapes do not tell the number of groups of its norms: 32, as in every published model. Two unsupported models have
    nearly the same names: HunyuanImage's original, with 64 channels, and Qwen-Image 2.1, with other norms.
    """
    original = "encoder.down.0.block.0.conv1.weight" in shapes
    block = "encoder.down.{}.block.{}.conv1.weight" if original else "encoder.down_blocks.{}.resnets.{}.conv1.weight"
    attention = "encoder.mid.attn_1.norm.weight" if original else "encoder.mid_block.attentions.0.group_norm.weight"
    levels = next(level for level in count() if block.format(level, 0) not in shapes)
    if not levels or "decoder.conv_out.weight" not in shapes or len(shapes["encoder.conv_in.weight"]) != 4:
        return None
    channels = shapes["encoder.conv_out.weight"][0] // 2
    if (original and channels == 64) or "encoder.mid_block.resnets.0.norm1.gamma" in shapes:
        return None
    config = {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": tuple(shapes[block.format(level, 0)][0] for level in range(levels)),
        "layers_per_block": next(layer for layer in count() if block.format(0, layer) not in shapes),
        "latent_channels": channels,
        "sample_size": 512 if channels == 4 else 1024,
        "use_quant_conv": "quant_conv.weight" in shapes or "encoder.quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes or "decoder.post_quant_conv.weight" in shapes,
        "mid_block_add_attention": attention in shapes,
    }
    convert = _convert_kl if original else _rename_old_attention
    if "bn.running_mean" in shapes:
        return Layout("AutoencoderKLFlux2", config, convert)
    return Layout("AutoencoderKL", config | {"scaling_factor": None, "shift_factor": None}, convert)


def _convert_kl(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    """Flux.2's original has the quantizing convolutions inside encoder and decoder, and running statistics."""
    inside = {"encoder.quant_conv": "quant_conv", "decoder.post_quant_conv": "post_quant_conv"}
    tensors = {_replace_all(name, inside): tensor for name, tensor in tensors.items()}
    statistics = {name: tensor for name, tensor in tensors.items() if name.startswith("bn.")}
    return _rename_tensors("convert_ldm_vae_checkpoint", tensors, config) | statistics


# fmt: off
_WAN_22_MEAN = [
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891, 0.1570,
    -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502, -0.2055, -0.0322,
    0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520,
    0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
]
_WAN_22_STD = [
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165,
    0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659, 0.7069, 0.5338, 0.4889, 0.4917,
    0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600,
    0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
]
# fmt: on
_WAN_21: dict[str, Any] = {"dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "temperal_downsample": [False, True, True]}
_WAN_22: dict[str, Any] = _WAN_21 | {
    "is_residual": True,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": _WAN_22_MEAN,
    "latents_std": _WAN_22_STD,
}


def _wan_layout(shapes: Shapes) -> Layout | None:
    """Wan 2.1 and 2.2, in the original layout or that of diffusers.

    A file of Qwen-Image has the names, shapes and statistics of Wan 2.1, and is loaded as that; both encode alike.
    """
    original = "encoder.middle.0.residual.0.gamma" in shapes
    if not original and "encoder.mid_block.resnets.0.norm1.gamma" not in shapes:
        return None
    first, last = ("encoder.conv1", "decoder.conv1") if original else ("encoder.conv_in", "decoder.conv_in")
    width, inputs, *kernel = shapes[f"{first}.weight"]
    if len(kernel) != 3:
        return None
    config = (_WAN_21 if inputs == 3 else _WAN_22) | {
        "base_dim": width,
        "decoder_base_dim": shapes[f"{last}.weight"][0] // _WAN_21["dim_mult"][-1],
        "z_dim": shapes[f"{last}.weight"][1],
        "in_channels": inputs,
        "out_channels": inputs,
    }
    return Layout("AutoencoderKLWan", config, _convert_wan if original else _unchanged)


_WAN_22_BLOCKS = [
    (r"encoder\.downsamples\.(\d)\.downsamples\.2\.", r"encoder.down_blocks.\1.downsampler."),
    (r"decoder\.upsamples\.(\d)\.upsamples\.3\.", r"decoder.up_blocks.\1.upsampler."),
    (r"encoder\.downsamples\.(\d)\.downsamples\.(\d)\.", r"encoder.down_blocks.\1.resnets.\2."),
    (r"decoder\.upsamples\.(\d)\.upsamples\.(\d)\.", r"decoder.up_blocks.\1.resnets.\2."),
]
_WAN_RESIDUAL = {
    ".residual.0.": ".norm1.",
    ".residual.2.": ".conv1.",
    ".residual.3.": ".norm2.",
    ".residual.6.": ".conv2.",
    ".shortcut.": ".conv_shortcut.",
}


def _convert_wan(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    """Wan 2.2 nests its blocks, which the function of diffusers does not know; all else is as in Wan 2.1."""
    if config.get("is_residual"):
        tensors = {_wan_22_block(name): tensor for name, tensor in tensors.items()}
    return _rename_tensors("convert_wan_vae_to_diffusers", tensors)


def _wan_22_block(name: str) -> str:
    for old, new in _WAN_22_BLOCKS:
        if re.match(old, name):
            return _replace_all(re.sub(old, new, name), _WAN_RESIDUAL)
    return name


_DC_SANA: dict[str, Any] = {
    "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
    "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
    "encoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "decoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "downsample_block_type": "conv",
    "upsample_block_type": "interpolate",
    "scaling_factor": 0.41407,
}


def _dc_layout(shapes: Shapes) -> Layout | None:
    """Sana's DC-AE, in the original layout or that of diffusers."""
    original = "encoder.project_in.conv.bias" in shapes
    if not original and "encoder.down_blocks.5.0.attn.to_q.weight" not in shapes:
        return None
    down, up = ("encoder.stages.", "decoder.stages.") if original else ("encoder.down_blocks.", "decoder.up_blocks.")
    config = _DC_SANA | {
        "latent_channels": shapes["encoder.project_out.0.conv.bias" if original else "encoder.conv_out.bias"][0],
        "encoder_block_out_channels": _norm_widths(shapes, down),
        "decoder_block_out_channels": _norm_widths(shapes, up),
    }
    return Layout("AutoencoderDC", config, _convert_dc if original else _unchanged)


def _convert_dc(tensors: Tensors, _config: dict[str, Any]) -> Tensors:
    return _rename_tensors("convert_autoencoder_dc_checkpoint_to_diffusers", dict(tensors))


def _norm_widths(shapes: Shapes, prefix: str) -> tuple[int, ...]:
    """Return each stage's channels: the length of the weights of its norms."""
    norms = {name: shape for name, shape in shapes.items() if name.endswith(("norm.weight", "norm_out.weight"))}
    widths = {int(name.split(".")[2]): shape[0] for name, shape in norms.items() if name.startswith(prefix)}
    return tuple(widths[stage] for stage in sorted(widths))


def _tiny_layout(shapes: Shapes) -> Layout | None:
    """TAESD in the layout of diffusers; the original is two files."""
    convolutions = [int(name.split(".")[2]) for name in shapes if re.fullmatch(r"encoder\.layers\.\d+\.weight", name)]
    if not convolutions or "decoder.layers.0.weight" not in shapes:
        return None
    widths = (shapes["encoder.layers.0.weight"][0],) * 4
    latent = shapes[f"encoder.layers.{max(convolutions)}.weight"][0]
    names = ("encoder_block_out_channels", "decoder_block_out_channels")
    return Layout("AutoencoderTiny", {"latent_channels": latent} | dict.fromkeys(names, widths), _unchanged)


LAYOUTS = (_kl_layout, _wan_layout, _dc_layout, _tiny_layout)
"""One function per model: takes the shapes of a file; returns its layout, or None for a file of another model.
Configurations are small literals, completed with numbers from the shapes."""


def _rename_tensors(function: str, *arguments: Any) -> Tensors:
    """Call a function of ``diffusers.loaders.single_file_utils`` that returns tensors under diffusers' names.

    These functions are private. diffusers' public way, ``from_single_file``, asks the hub for a configuration and does
    not check for missing tensors. If a version of diffusers lacks one, only files in an original layout are refused.

    Raises:
        ImportError: there is no such function.
    """
    import diffusers

    try:
        rename = getattr(import_module("diffusers.loaders.single_file_utils"), function)
    except (ImportError, AttributeError) as error:
        raise ImportError(f"diffusers {diffusers.__version__} has no {function}") from error
    renamed: Tensors = rename(*arguments)
    return renamed
