"""Rename tensors from diffusers' names to those of original checkpoints, independently of the package."""

import re
from typing import Any

Tensors = dict[str, Any]


def _by(rules: list[tuple[str, str]], name: str) -> str:
    for old, new in rules:
        name = re.sub(old, new, name)
    return name


def latent_diffusion(tensors: Tensors, levels: int = 4) -> Tensors:
    """As CompVis, Stability and Black Forest Labs write an AutoencoderKL: attention by convolutions of one pixel."""
    rules = [
        (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
        (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
        (r"up_blocks\.(\d)\.resnets\.(\d)", r"up.<\1>.block.\2"),
        (r"up_blocks\.(\d)\.upsamplers\.0", r"up.<\1>.upsample"),
        (r"mid_block\.resnets\.0", "mid.block_1"),
        (r"mid_block\.resnets\.1", "mid.block_2"),
        (r"mid_block\.attentions\.0", "mid.attn_1"),
        (r"attn_1\.group_norm", "attn_1.norm"),
        (r"attn_1\.to_([qkv])", r"attn_1.\1"),
        (r"attn_1\.to_out\.0", "attn_1.proj_out"),
        ("conv_norm_out", "norm_out"),
        ("conv_shortcut", "nin_shortcut"),
    ]
    named = {}
    for name, tensor in tensors.items():
        original = re.sub(r"<(\d)>", lambda found: str(levels - 1 - int(found[1])), _by(rules, name))
        named[original] = (
            tensor[:, :, None, None] if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", original) else tensor
        )
    return named


def flux2(tensors: Tensors) -> Tensors:
    """As Black Forest Labs write Flux.2's: the quantizing convolutions inside, batches not counted."""
    inside = [("^quant_conv", "encoder.quant_conv"), ("^post_quant_conv", "decoder.post_quant_conv")]
    named = {_by(inside, name): tensor for name, tensor in latent_diffusion(tensors).items()}
    del named["bn.num_batches_tracked"]
    return named


_WAN_COMMON = [
    ("^quant_conv", "conv1"),
    ("^post_quant_conv", "conv2"),
    ("conv_in", "conv1"),
    ("norm_out", "head.0"),
    (r"coder\.conv_out", r"coder.head.2"),
    (r"mid_block\.resnets\.0", "middle.0"),
    (r"mid_block\.attentions\.0", "middle.1"),
    (r"mid_block\.resnets\.1", "middle.2"),
    ("conv_shortcut", "shortcut"),
]
_WAN_RESIDUAL = [("norm1", "residual.0"), ("conv1", "residual.2"), ("norm2", "residual.3"), ("conv2", "residual.6")]


def _wan(tensors: Tensors, blocks: list[tuple[str, str]]) -> Tensors:
    residual = re.compile(r"(blocks|resnets)\.\d+\.(norm|conv)[12]\.")
    named = {}
    for name, tensor in tensors.items():
        original = _by(_WAN_RESIDUAL, name) if residual.search(name) else name
        named[_by(blocks + _WAN_COMMON, original)] = tensor
    return named


def wan_21(tensors: Tensors) -> Tensors:
    """As Alibaba writes Wan 2.1: blocks, resamplers and all in one row."""
    flat = {
        f"decoder.up_blocks.{block}.{part}.": f"decoder.upsamples.{4 * block + place}."
        for block in range(4)
        for place, part in enumerate(["resnets.0", "resnets.1", "resnets.2", "upsamplers.0"])
    }
    blocks = [(re.escape(old), new) for old, new in flat.items()]
    return _wan(tensors, [*blocks, (r"encoder\.down_blocks", "encoder.downsamples")])


def wan_22(tensors: Tensors) -> Tensors:
    """As Alibaba writes Wan 2.2: rows within rows."""
    blocks = [
        (r"down_blocks\.(\d)\.resnets\.(\d)", r"downsamples.\1.downsamples.\2"),
        (r"down_blocks\.(\d)\.downsampler", r"downsamples.\1.downsamples.2"),
        (r"up_blocks\.(\d)\.resnets\.(\d)", r"upsamples.\1.upsamples.\2"),
        (r"up_blocks\.(\d)\.upsampler", r"upsamples.\1.upsamples.3"),
    ]
    return _wan(tensors, blocks)


def dc_ae(tensors: Tensors) -> Tensors:
    """As MIT writes the DC-AE of Sana: queries, keys and values in one."""
    import torch

    rules = [
        (r"encoder\.conv_in", "encoder.project_in.conv"),
        (r"encoder\.conv_out", "encoder.project_out.0.conv"),
        (r"decoder\.conv_in", "decoder.project_in.conv"),
        (r"decoder\.norm_out", "decoder.project_out.0"),
        (r"decoder\.conv_out", "decoder.project_out.2.conv"),
        (r"(down|up)_blocks\.(\d)\.(\d)", r"stages.\2.op_list.\3"),
        (r"(op_list\.\d)\.norm", r"\1.main.conv2.norm"),
        (r"(op_list\.\d)\.conv([12])", r"\1.main.conv\2.conv"),
        (r"(encoder.*op_list\.\d)\.conv\.", r"\1.main.conv."),
        (r"(decoder.*op_list\.\d)\.conv\.", r"\1.main.conv.conv."),
        (r"attn\.to_qkv_multiscale\.0\.proj_in", "context_module.main.aggreg.0.0"),
        (r"attn\.to_qkv_multiscale\.0\.proj_out", "context_module.main.aggreg.0.1"),
        (r"attn\.norm_out", "context_module.main.proj.norm"),
        (r"attn\.to_out", "context_module.main.proj.conv"),
        (r"(op_list\.\d)\.conv_out\.norm", r"\1.local_module.main.point_conv.norm"),
        (r"(op_list\.\d)\.conv_out\.conv_(inverted|depth|point)", r"\1.local_module.main.\2_conv.conv"),
    ]
    named = {}
    for name, tensor in tensors.items():
        if name.endswith("to_q.weight"):
            three = torch.cat([tensors[name.replace("to_q", part)] for part in ("to_q", "to_k", "to_v")])
            named[_by(rules, name.replace("attn.to_q", "context_module.main.qkv.conv"))] = three[:, :, None, None]
        elif not re.search(r"to_[kv]\.weight$", name):
            original = _by(rules, name)
            named[original] = tensor[:, :, None, None] if original.endswith("proj.conv.weight") else tensor
    return named
