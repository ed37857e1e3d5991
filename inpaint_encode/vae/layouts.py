"""Layouts of single files: which model a file's tensor names and shapes are of, and what diffusers calls its tensors.

A configuration is made of a small literal and of what the shapes tell. Each layout returns None for a file that is not
its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LAYOUTS", "UNMAPPED", "Layout", "Shapes"]

Shapes = Mapping[str, Sequence[int]]
"""The shape of each tensor of the VAE, by its name."""

Tensors = dict[str, "Tensor"]


class Layout(NamedTuple):
    """How a file is read."""

    class_name: str
    config: dict[str, Any]
    convert: Callable[[Tensors, dict[str, Any]], Tensors]
    """Names the tensors as diffusers does."""


def _as_they_are(tensors: Tensors, _config: dict[str, Any]) -> Tensors:
    return tensors


_OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""What diffusers called the projections of attention until 2023."""


def _of_diffusers(tensors: Tensors, _config: dict[str, Any]) -> Tensors:
    return {_replaced(name, _OLD_ATTENTION): tensor for name, tensor in tensors.items()}


def _replaced(name: str, parts: Mapping[str, str]) -> str:
    for old, new in parts.items():
        name = name.replace(old, new)
    return name


def _kl(shapes: Shapes) -> Layout | None:
    """AutoencoderKL and Flux.2's, whose encoders are one, in the layout of latent diffusion or of diffusers.

    Shapes do not tell the groups of its norms: 32, as in every model that was published.
    """
    original = "encoder.down.0.block.0.conv1.weight" in shapes
    block = "encoder.down.{}.block.{}.conv1.weight" if original else "encoder.down_blocks.{}.resnets.{}.conv1.weight"
    attention = "encoder.mid.attn_1.norm.weight" if original else "encoder.mid_block.attentions.0.group_norm.weight"
    widths = [shapes[block.format(level, 0)][0] for level in _while_there(shapes, block, "{}", 0)]
    if not widths or "decoder.conv_out.weight" not in shapes or len(shapes["encoder.conv_in.weight"]) != 4:
        return None
    channels = shapes["encoder.conv_out.weight"][0] // 2
    config = {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "block_out_channels": tuple(widths),
        "layers_per_block": len(_while_there(shapes, block, 0, "{}")),
        "latent_channels": channels,
        "sample_size": 512 if channels == 4 else 1024,
        "use_quant_conv": "quant_conv.weight" in shapes or "encoder.quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes or "decoder.post_quant_conv.weight" in shapes,
        "mid_block_add_attention": attention in shapes,
    }
    convert = _latent_diffusion if original else _of_diffusers
    if "bn.running_mean" in shapes:
        return Layout("AutoencoderKLFlux2", config, convert)
    return Layout("AutoencoderKL", config | {"scaling_factor": None, "shift_factor": None}, convert)


def _while_there(shapes: Shapes, name: str, *numbers: str | int) -> list[int]:
    """The numbers from 0 on for which ``name`` is there, with ``"{}"`` of ``numbers`` replaced by them."""
    found: list[int] = []
    for number in count():
        if name.format(*(number if each == "{}" else each for each in numbers)) not in shapes:
            return found
        found.append(number)
    return found


def _latent_diffusion(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    """Flux.2's original has the quantising convolutions inside encoder and decoder, and counts no batches."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    inside = {"encoder.quant_conv": "quant_conv", "decoder.post_quant_conv": "post_quant_conv"}
    tensors = {_replaced(name, inside): tensor for name, tensor in tensors.items()}
    converted: Tensors = convert_ldm_vae_checkpoint(tensors, config)
    return converted | {name: tensor for name, tensor in tensors.items() if name.startswith("bn.")}


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


def _wan(shapes: Shapes) -> Layout | None:
    """Wan 2.1 and 2.2, in the original layout or that of diffusers.

    A file of Qwen-Image has the names, the shapes and the statistics of Wan 2.1, and the two classes encode alike.
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
    return Layout("AutoencoderKLWan", config, _wan_names if original else _as_they_are)


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


def _wan_names(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    """Diffusers maps Wan 2.1, and of Wan 2.2 all but the blocks, which are nested there."""
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    if config.get("is_residual"):
        tensors = {_wan_22_name(name): tensor for name, tensor in tensors.items()}
    converted: Tensors = convert_wan_vae_to_diffusers(tensors)
    return converted


def _wan_22_name(name: str) -> str:
    for old, new in _WAN_22_BLOCKS:
        if re.match(old, name):
            return _replaced(re.sub(old, new, name), _WAN_RESIDUAL)
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


def _dc(shapes: Shapes) -> Layout | None:
    """Sana's DC-AE, in the original layout or that of diffusers."""
    original = "encoder.project_in.conv.bias" in shapes
    if not original and "encoder.down_blocks.5.0.attn.to_q.weight" not in shapes:
        return None
    down, up = ("encoder.stages", "decoder.stages") if original else ("encoder.down_blocks", "decoder.up_blocks")
    config = _DC_SANA | {
        "latent_channels": shapes["encoder.project_out.0.conv.bias" if original else "encoder.conv_out.bias"][0],
        "encoder_block_out_channels": _widths_of_norms(shapes, down),
        "decoder_block_out_channels": _widths_of_norms(shapes, up),
    }
    return Layout("AutoencoderDC", config, _dc_names if original else _as_they_are)


def _widths_of_norms(shapes: Shapes, stages: str) -> tuple[int, ...]:
    """Each stage's channels, of which every norm in it has a weight."""
    ends = ("norm.weight", "norm_out.weight")
    found = {int(name.split(".")[2]): shape[0] for name, shape in shapes.items() if _is_in(name, stages, ends)}
    return tuple(found[stage] for stage in sorted(found))


def _is_in(name: str, stages: str, ends: tuple[str, ...]) -> bool:
    return name.startswith(f"{stages}.") and name.endswith(ends)


def _dc_names(tensors: Tensors, _config: dict[str, Any]) -> Tensors:
    from diffusers.loaders.single_file_utils import convert_autoencoder_dc_checkpoint_to_diffusers

    converted: Tensors = convert_autoencoder_dc_checkpoint_to_diffusers(dict(tensors))
    return converted


def _tiny(shapes: Shapes) -> Layout | None:
    """TAESD as diffusers has it; the original is two files."""
    convolutions = [int(name.split(".")[2]) for name in shapes if re.fullmatch(r"encoder\.layers\.\d+\.weight", name)]
    if not convolutions or "decoder.layers.0.weight" not in shapes:
        return None
    widths = (shapes["encoder.layers.0.weight"][0],) * 4
    latent = shapes[f"encoder.layers.{max(convolutions)}.weight"][0]
    names = ("encoder_block_out_channels", "decoder_block_out_channels")
    return Layout("AutoencoderTiny", {"latent_channels": latent} | dict.fromkeys(names, widths), _as_they_are)


LAYOUTS = (_kl, _wan, _dc, _tiny)
"""Each gives the layout of a file that is its own."""

UNMAPPED: Mapping[str, Callable[[Shapes], bool]] = MappingProxyType(
    {
        "HunyuanImage": lambda shapes: (
            "encoder.down_blocks.0.norm1.weight" in shapes
            or ("encoder.mid.block_1.norm1.weight" in shapes and shapes["encoder.conv_out.weight"][0] == 128)
        ),
        "Qwen-Image 2.1": lambda shapes: (
            "encoder.mid_block.resnets.0.norm1.gamma" in shapes and len(shapes["encoder.conv_in.weight"]) == 4
        ),
        "an older DC-AE": lambda shapes: (
            "encoder.stages.1.op_list.0.main.conv1.conv.weight" in shapes
            and "encoder.project_in.conv.bias" not in shapes
        ),
        "half a TAESD": lambda shapes: "1.conv.0.weight" in shapes,
    }
)
"""What can be told by its name, and is refused: it has no layout here. HunyuanImage's original is told from latent
diffusion by its 64 channels."""
