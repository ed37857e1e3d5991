"""Muon for convolutions: torch's Muon takes matrices, so each kernel is viewed as one."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

__all__ = ["kernels_as_matrices"]


def kernels_as_matrices(convolutions: Iterable[nn.Conv2d]) -> list[nn.Parameter]:
    """Return a parameter ``[out, in * height * width]`` per kernel, which shares its values and its gradient.

    From then on, gradients must be zeroed in place, not set to None.
    """
    matrices = []
    for conv in convolutions:
        conv.weight.grad = torch.zeros_like(conv.weight)
        matrix = nn.Parameter(conv.weight.detach().flatten(1))
        matrix.grad = conv.weight.grad.flatten(1)
        matrices.append(matrix)
    return matrices
