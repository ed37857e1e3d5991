"""The same VAE, laid out and compiled for speed; what it computes differs from the plain one by rounding alone."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

__all__ = ["MOST_GRAPHS", "GraphedEncoder", "tuned"]

MOST_GRAPHS = 16
"""Batch shapes that get a graph of their own; each takes the compiler a good part of a minute on a GPU."""

AFTER = 32
"""Batches of one shape that are encoded without a graph before it gets one: rare shapes are not worth it."""

_log = logging.getLogger(__name__)


def tuned(vae: AutoencoderKL, *, deterministic: bool, compiled: bool) -> AutoencoderKL:
    """Prepare ``vae``, in place, for the GPU that it is on; the weights keep their values.

    Channels-last convolutions and, unless ``deterministic``, algorithms chosen by cuDNN's measurements and, if
    ``compiled``, graphs for the batch shapes that come often. On a CPU nothing is changed: channels-last group norms
    are off by 5e-5 in float32 there, and the contract allows 1e-5.
    """
    if next(vae.parameters()).device.type != "cuda":
        return vae
    vae = vae.to(memory_format=torch.channels_last)
    if not deterministic:
        torch.backends.cudnn.benchmark = True
        if compiled:
            vae.encoder = GraphedEncoder(vae.encoder)
    return vae


class GraphedEncoder(nn.Module):
    """Compiles ``encoder`` for batch shapes that come often and runs all others as it is.

    A graph is used once it has agreed with the plain encoder on a batch; one that cannot be built, or that does not
    agree, leaves its shape to the plain encoder for good. Compiled code is kept on the node's disk by torch
    (``TORCHINDUCTOR_CACHE_DIR``), so that the actors of a node build a graph once.
    """

    def __init__(self, encoder: nn.Module, *, after: int = AFTER, most: int = MOST_GRAPHS) -> None:
        super().__init__()
        self.plain = encoder
        self._compiled = torch.compile(encoder.forward, dynamic=False, mode="max-autotune-no-cudagraphs")
        self._after, self._most = after, most
        self._seen: Counter[tuple[int, ...]] = Counter()
        self._graphs: dict[tuple[int, ...], bool] = {}
        torch._dynamo.config.recompile_limit = max(most + 1, torch._dynamo.config.recompile_limit)

    @property
    def graphs(self) -> list[tuple[int, ...]]:
        """Shapes ``[B, 3, H, W]`` that have a graph in use."""
        return [shape for shape, agrees in self._graphs.items() if agrees]

    def forward(self, inputs: Tensor) -> Tensor:
        """Encode ``[B, 3, H, W]``."""
        shape = tuple(inputs.shape)
        self._seen[shape] += 1
        if self._graphs.get(shape):
            return self._run(inputs)
        expected: Tensor = self.plain(inputs)
        if self._due(shape) and bool(expected.isfinite().all()):  # of what is not, nothing can be told
            self._graphs[shape] = self._agrees(inputs, expected)
        return expected

    def _due(self, shape: tuple[int, ...]) -> bool:
        return self._seen[shape] >= self._after and shape not in self._graphs and len(self._graphs) < self._most

    def _run(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self._compiled(inputs)
        return outputs

    def _agrees(self, inputs: Tensor, expected: Tensor) -> bool:
        """Build the shape's graph and hold its result against the plain one, within twice the type's own rounding."""
        try:
            difference = (self._run(inputs) - expected).float().abs().max()
        except Exception as error:  # the compiler fails in many ways, none of which may stop a job
            _log.warning("no graph for %s: %s", list(inputs.shape), str(error).splitlines()[0])
            return False
        return bool(difference <= TOLERANCE[inputs.dtype] * expected.float().abs().max())


TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.03}
"""Largest difference between a graph's result and the plain one, as a share of the largest value."""
