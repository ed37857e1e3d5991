"""Training on one thread: the same recipe and versions give the same weights bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from jobs.benchmarks.threads import one_thread

from .muon import kernels_as_matrices
from .pictures import Pictures
from .start import build, start_linear

__all__ = ["Recipe", "train"]

Optimizers = list[tuple[torch.optim.Optimizer, float]]
"""Optimizers with their learning rates."""


class Recipe(NamedTuple):
    """Hyperparameters of the network and its training."""

    steps: int
    seed: int = 0
    widths: tuple[int, ...] = (16, 16, 32, 32)
    latent_channels: int = 16
    batches: tuple[tuple[int, int], ...] = ((8, 64), (8, 64), (2, 128))
    """Pieces per step and their sides in pixels; steps cycle through them."""
    initial_pieces: tuple[int, int] = (48, 128)
    """Pieces whose principal components initialize the network, and their sides in pixels."""
    muon_rate: float = 0.008
    """Learning rate of Muon, for the kernels of residual branches."""
    adam_rate: float = 8e-4
    """Learning rate of Adam, for everything else."""
    warmup_share: float = 0.02
    """Share of the steps with warmup_share learning rates (warm-up)."""
    decay_from: float = 0.2
    """Share of the steps after which learning rates fall to 0, along half a cosine."""
    flat_weight: float = 20.0
    """Extra weight of the error on flat pixels."""
    kl_weight: float = 3e-5


def train(recipe: Recipe, on_status: Callable[[str], None] = lambda _: None) -> Any:
    """Return a trained AutoencoderKL in float32; ``on_status`` gets a line with the loss every hundred steps."""
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        pictures = Pictures(recipe.seed)
        vae = build(recipe.widths, recipe.latent_channels)
        start_linear(vae, pictures.plain(*recipe.initial_pieces))
        optimizers = _optimizers(vae, recipe)
        for step in range(recipe.steps):
            batch = pictures.batch(*recipe.batches[step % len(recipe.batches)])
            loss = _learn(vae, recipe, optimizers, step, batch)
            if step % 100 == 99:
                on_status(f"step {step + 1:,} of {recipe.steps:,}: loss {loss:.5f}")
        vae.register_to_config(scaling_factor=_scaling_factor(vae, pictures))
    return vae.eval()


def _learn(vae: Any, recipe: Recipe, optimizers: Optimizers, step: int, batch: tuple[Tensor, Tensor]) -> float:
    loss = _loss(vae, recipe, *batch)
    _zero_gradients(vae)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
    for optimizer, rate in optimizers:
        optimizer.param_groups[0]["lr"] = rate * _share_of_rate(recipe, step)
        optimizer.step()
    return loss.item()


def _optimizers(vae: Any, recipe: Recipe) -> Optimizers:
    blocks = [block for block in vae.modules() if hasattr(block, "conv_shortcut")]
    convolutions = [conv for block in blocks for conv in (block.conv1, block.conv2)]
    kernels = {id(conv.weight) for conv in convolutions}
    others = [parameter for parameter in vae.parameters() if id(parameter) not in kernels]
    return [
        (torch.optim.Muon(kernels_as_matrices(convolutions), weight_decay=0.0), recipe.muon_rate),
        (torch.optim.Adam(others, betas=(0.9, 0.98)), recipe.adam_rate),
    ]


def _loss(vae: Any, recipe: Recipe, pixels: Tensor, flat: Tensor) -> Tensor:
    """Mean squared error with extra weight on flat pixels, plus the posterior's KL divergence per value."""
    posterior = vae.encode(pixels).latent_dist
    squares = (vae.decode(posterior.sample()).sample - pixels).square()
    divergence = posterior.kl().mean() / posterior.mean[0].numel()
    loss: Tensor = (squares * (1 + recipe.flat_weight * flat)).mean() + recipe.kl_weight * divergence
    return loss


def _zero_gradients(vae: Any) -> None:
    """Zero in place, since Muon's matrices share the gradients."""
    for parameter in vae.parameters():
        if parameter.grad is not None:
            parameter.grad.zero_()


def _share_of_rate(recipe: Recipe, step: int) -> float:
    done = (step + 1) / recipe.steps
    falling = max(0.0, (done - recipe.decay_from) / (1 - recipe.decay_from))
    return min(1.0, done / recipe.warmup_share) * (1 + math.cos(math.pi * falling)) / 2


@torch.no_grad()
def _scaling_factor(vae: Any, pictures: Pictures) -> float:
    """One over the standard deviation of the photographs' latents, so that scaled latents have about 1."""
    latents = vae.encode(pictures.plain(64, 128)).latent_dist.mode()
    return round(1 / float(latents.std()), 4)
