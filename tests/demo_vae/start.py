"""Initial weights of a linear network: it packs 8 x 8 pixels into their principal components, and unpacks them.

Training thus starts from a working codec, and every residual branch starts from zero. Channel 0 of each level is a
constant, far larger than the rest. The norms have one group and divide by the deviation over the whole image: without
the constant, a flat image would be divided by almost zero, and one corner of an image would change the other.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["build", "start_linear"]

CONSTANT = 20.0
"""Value of channel 0; other channels are about 1."""
RIDGE = 1e-3
NARROW_POSTERIOR = -8.0
"""Initial log-variance of the posterior, for latents of variance 1."""
SILU_MIDDLE, SILU_SCALE = 3.0, 0.5
"""SiLU is nearly linear around 3, where it passes the latents through."""


class Packing(NamedTuple):
    """One halving of the sides: ``components`` maps 2 x 2 pixels of each channel to the channels of the next level."""

    components: Tensor
    """``[out, in * 4]``; the four pixels of a channel are adjacent."""
    mean: Tensor
    scale: Tensor
    """Standard deviations of the components."""


def build(widths: tuple[int, ...], latent_channels: int) -> Any:
    """Return an AutoencoderKL without attention, one layer per block, with random weights."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=1,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=256,
    )


@torch.no_grad()
def start_linear(vae: Any, pixels: Tensor) -> None:
    """Initialize the weights of ``vae`` from training pictures, ``[B, 3, H, W]`` in -1..1."""
    packings, packed = [], [pixels]
    for block in vae.encoder.down_blocks[:-1]:
        room = block.downsamplers[0].conv.out_channels - 1
        packings.append(_principal(packed[-1], room))
        packed.append(_pack(packed[-1], packings[-1]))
    for resnet in (one for one in vae.modules() if hasattr(one, "conv_shortcut")):
        _pass_through(resnet)
    _start_encoder(vae.encoder, packings, vae.config.latent_channels)
    _start_decoder(vae.decoder, packed, vae.config.latent_channels)


def _principal(pixels: Tensor, room: int) -> Packing:
    patches = functional.pixel_unshuffle(pixels, 2).movedim(1, -1).flatten(0, -2)
    mean = patches.mean(0)
    _, deviations, components = torch.linalg.svd(patches - mean, full_matrices=False)
    kept = min(room, len(components))
    return Packing(components[:kept], mean, deviations[:kept] / math.sqrt(len(patches)))


def _pack(pixels: Tensor, packing: Packing) -> Tensor:
    patches = functional.pixel_unshuffle(pixels, 2).movedim(1, -1) - packing.mean
    return (patches @ packing.components.T).movedim(-1, 1)


def _pass_through(resnet: Any) -> None:
    """Pass a block's input through unchanged, with the constant; the branch starts from zero."""
    nn.init.zeros_(resnet.conv2.weight)
    nn.init.zeros_(resnet.conv2.bias)
    _undo_norm(resnet.norm1)
    if resnet.conv_shortcut is not None:
        through = min(resnet.conv_shortcut.weight.shape[:2]) - 1
        _set(resnet.conv_shortcut, torch.eye(through)[..., None, None])


def _undo_norm(norm: Any) -> None:
    """Undo the norm's division by the deviation that the constant causes, and remove the constant."""
    nn.init.constant_(norm.weight, CONSTANT * math.sqrt(norm.num_channels - 1) / norm.num_channels)
    norm.weight[0] = 0


def _set(conv: nn.Conv2d, kernel: Tensor, bias: Tensor | float = 0.0, first: int = 1) -> None:
    """Set ``kernel`` (top left aligned) and ``bias`` of ``conv`` for the input channels from ``first`` on.

    Output channel 0 is the constant. Output channels beyond the kernel's keep their weights, for the branches.
    """
    made, seen, height, width = kernel.shape
    conv.weight[:, :first] = 0
    conv.weight[: 1 + made] = 0
    conv.weight[1 : 1 + made, first : first + seen, :height, :width] = kernel
    assert conv.bias is not None
    conv.bias[1 : 1 + made] = bias
    conv.bias[0] = CONSTANT


def _centred(matrix: Tensor) -> Tensor:
    """Return a 3 x 3 kernel with ``matrix`` in its middle."""
    return functional.pad(matrix[..., None, None], (1, 1, 1, 1))


def _start_encoder(encoder: Any, packings: list[Packing], channels: int) -> None:
    _set(encoder.conv_in, _centred(torch.eye(3)), first=0)
    for block, packing in zip(encoder.down_blocks, packings, strict=False):
        kernel = packing.components.reshape(len(packing.components), -1, 2, 2)
        _set(block.downsamplers[0].conv, kernel, bias=-packing.components @ packing.mean)
    latents = slice(1, 1 + channels)
    _undo_norm(encoder.conv_norm_out)
    norm, strength = encoder.conv_norm_out, SILU_SCALE / packings[-1].scale[:channels]
    norm.bias[latents] = SILU_MIDDLE + strength * CONSTANT / norm.num_channels
    norm.weight[latents] *= strength
    nn.init.zeros_(encoder.conv_out.weight)
    encoder.conv_out.weight[:channels, latents] = _centred(torch.eye(channels)) / SILU_SCALE
    encoder.conv_out.bias[:channels] = -functional.silu(torch.tensor(SILU_MIDDLE)) / SILU_SCALE
    encoder.conv_out.bias[channels:] = NARROW_POSTERIOR


def _start_decoder(decoder: Any, packed: list[Tensor], channels: int) -> None:
    """Fit each doubling of the sides to the encoder's values at that level, by least squares."""
    latents = packed[-1][:, :channels]
    latents = latents / latents.std((0, 2, 3), keepdim=True)
    _set(decoder.conv_in, _centred(torch.eye(channels)), first=0)
    for block, wanted in zip(decoder.up_blocks, reversed(packed[:-1]), strict=False):
        conv = block.upsamplers[0].conv
        weight, bias = _fitted(latents, wanted[:, : conv.out_channels - 1])
        _set(conv, weight, bias)
        latents = functional.conv2d(_doubled(latents), weight, bias, padding=1)
    _add_negatives(decoder.up_blocks[-2].upsamplers[0].conv)
    _undo_norm(decoder.conv_norm_out)
    nn.init.constant_(decoder.conv_norm_out.bias[1:7], CONSTANT / decoder.conv_norm_out.num_channels)
    nn.init.zeros_(decoder.conv_out.weight)
    nn.init.zeros_(decoder.conv_out.bias)
    decoder.conv_out.weight[:, 1:7] = _centred(torch.cat([torch.eye(3), -torch.eye(3)], dim=1))


def _add_negatives(conv: Any) -> None:
    """Add the negatives of red, green and blue: SiLU(x) - SiLU(-x) is x."""
    conv.weight[4:7], conv.bias[4:7] = -conv.weight[1:4], -conv.bias[1:4]


def _doubled(pixels: Tensor) -> Tensor:
    return functional.interpolate(pixels, scale_factor=2.0, mode="nearest")


def _fitted(given: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return the 3 x 3 convolution (weight, bias) that maps ``given``, doubled, closest to ``wanted``."""
    seen = functional.unfold(_doubled(given), 3, padding=1).movedim(1, -1).flatten(0, 1)
    seen = functional.pad(seen, (0, 1), value=1.0)
    normal = seen.T @ seen + RIDGE * len(seen) * torch.eye(seen.shape[1])
    solved = torch.linalg.solve(normal, seen.T @ wanted.movedim(1, -1).flatten(0, 2)).T
    return solved[:, :-1].reshape(len(solved), -1, 3, 3), solved[:, -1]
