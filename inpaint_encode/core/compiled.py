"""The VAE's encoder, compiled by torch for frequent batch shapes; results differ from the eager ones by rounding."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from inpaint_encode.stores.redaction import get_logger

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

MAX_SHAPES = 16
"""Batch shapes to compile; each takes most of a minute on a GPU."""

COMPILE_AFTER = 32
"""Batches of one shape before it is compiled; rare shapes run eagerly."""

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.03}
"""Largest difference between the compiled and the eager result, as a share of the largest value."""

_LOG = get_logger(__name__)


def optimize_for_gpu(vae: AutoencoderKL, *, deterministic: bool, compiled: bool) -> AutoencoderKL:
    """Prepare ``vae``, in place, for the GPU that it is on; on a CPU nothing changes.

    Convolutions become channels-last. Unless ``deterministic``, cuDNN measures and chooses its algorithms and, if
    ``compiled``, frequent batch shapes are compiled. On a CPU channels-last group norms are off by 5e-5 in float32, and
    the contract allows 1e-5.
    """
    if next(vae.parameters()).device.type != "cuda":
        return vae
    vae = vae.to(memory_format=torch.channels_last)
    if not deterministic:
        torch.backends.cudnn.benchmark = True
        if compiled:
            vae.encoder = CompiledEncoder(vae.encoder)
    return vae


class CompiledEncoder(nn.Module):
    """Compiles ``encoder`` for batch shapes that are frequent and runs the others eagerly.

    A shape is used compiled once its first compiled result agrees with the eager one. If the compiler fails, or the
    results differ, the shape stays eager. torch keeps compiled code on the node's disk (``TORCHINDUCTOR_CACHE_DIR``),
    so that the workers of a node compile a shape once.
    """

    def __init__(self, encoder: nn.Module, *, after: int = COMPILE_AFTER, most: int = MAX_SHAPES) -> None:
        super().__init__()
        self.eager = encoder
        self._compiled = torch.compile(encoder.forward, dynamic=False, mode="max-autotune-no-cudagraphs")
        self._after, self._most = after, most
        self._seen: Counter[tuple[int, ...]] = Counter()
        self._agrees: dict[tuple[int, ...], bool] = {}
        torch._dynamo.config.recompile_limit = max(most + 1, torch._dynamo.config.recompile_limit)

    @property
    def compiled_shapes(self) -> list[tuple[int, ...]]:
        """Shapes ``[B, 3, H, W]`` that run compiled."""
        return [shape for shape, agrees in self._agrees.items() if agrees]

    def forward(self, inputs: Tensor) -> Tensor:
        """Encode ``[B, 3, H, W]``."""
        shape = tuple(inputs.shape)
        self._seen[shape] += 1
        if self._agrees.get(shape):
            outputs: Tensor = self._compiled(inputs)
            return outputs
        expected: Tensor = self.eager(inputs)
        due = self._seen[shape] >= self._after and shape not in self._agrees and len(self._agrees) < self._most
        if due and bool(expected.isfinite().all()):  # values that are not finite cannot be compared
            self._agrees[shape] = self._compile(inputs, expected)
        return expected

    def _compile(self, inputs: Tensor, expected: Tensor) -> bool:
        """Compile the shape of ``inputs``; return whether the result agrees with the eager one."""
        try:
            difference = (self._compiled(inputs) - expected).float().abs().max()
        except Exception as error:  # the compiler raises many types, and none may stop a job
            _LOG.warning(
                "cannot compile the VAE for %s, which runs uncompiled: %s",
                list(inputs.shape),
                str(error).splitlines()[0],
            )
            return False
        return bool(difference <= TOLERANCE[inputs.dtype] * expected.float().abs().max())
