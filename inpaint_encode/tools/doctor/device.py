"""Checks of what computes: the CPU, torch, and GPUs by a small computation on each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from inpaint_encode.job.stages import LOGICAL_GPUS

from .finding import Finding, ok, problem, warning

__all__ = ["check_cpu", "check_gpus", "devices"]

_VECTORS = {"AVX2", "AVX512"}
"""Of x86: a CPU without them rounds some pixels of a resized mask to the other side, 36 of 7.4 million where it was
tried."""

_DRIVER = Path("/proc/driver/nvidia/version")


def devices(*, given: bool = False, gpus: bool = True) -> Iterator[Finding]:
    """All checks of what computes here.

    Args:
        given: whether Ray has given this process a GPU, so that none is a problem.
        gpus: whether to look for GPUs at all; Ray hides them from a worker that was given none.
    """
    try:
        import torch
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())
        yield problem("torch", f"cannot be imported: {reason}", "pip install -c constraints.txt . has one that can")
        return
    yield check_cpu(torch.backends.cpu.get_cpu_capability(), len(os.sched_getaffinity(0)))
    if gpus:
        yield from check_gpus(_DRIVER, given=given)


def check_cpu(vectors: str, cores: int) -> Finding:
    """What torch makes of the CPU."""
    found = f"{cores} {'core' if cores == 1 else 'cores'}; torch uses {vectors}"
    if vectors in _VECTORS:
        return ok("CPU", found)
    return warning("CPU", found, "encode the whole output on one kind of CPU: some mask pixels differ without AVX2")


def check_gpus(driver: Path, *, given: bool) -> Iterator[Finding]:
    """Compute on each GPU, or say why there is none.

    Args:
        driver: the file by which NVIDIA's driver says its version.
        given: whether there must be one.
    """
    import torch

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            yield _check_gpu(torch, number)
        return
    build = f"torch {torch.__version__} is built for {f'CUDA {torch.version.cuda}' if torch.version.cuda else 'CPUs'}"
    if given and os.environ.get(LOGICAL_GPUS) == "1":
        yield ok("GPU", f"one that is only a number, as {LOGICAL_GPUS}=1 says; {build}")
    elif not driver.exists():
        advice = "give GPU nodes an NVIDIA driver, or say --gpus-per-worker 0: a VAE on CPUs takes seconds an image"
        yield (problem if given else warning)("GPU", f"none: there is no NVIDIA driver; {build}", advice)
    elif torch.version.cuda is None:
        advice = "install torch's build for CUDA (the cluster's cuda image has it), or say --gpus-per-worker 0"
        yield problem("GPU", f"NVIDIA's driver is there, and {build}", advice)
    else:
        advice = "install a newer driver: 580 for CUDA 13, 525 for CUDA 12; or say --gpus-per-worker 0"
        yield problem("GPU", f"NVIDIA's driver is there, {build}, and finds no GPU: {_why_none(torch)}", advice)


def _why_none(torch: Any) -> str:
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return " ".join(str(error).split())
    return "none is visible; CUDA_VISIBLE_DEVICES may hide it"


def _check_gpu(torch: Any, number: int) -> Finding:
    """A convolution whose result is known: a build without code for this GPU fails at it."""
    name, check = torch.cuda.get_device_name(number), f"GPU {number}"
    major, minor = torch.cuda.get_device_capability(number)
    dtype = torch.bfloat16 if major >= 8 else torch.float32
    try:
        free, total = torch.cuda.mem_get_info(number)
        grey = torch.full((1, 3, 64, 64), 0.5, device=f"cuda:{number}", dtype=dtype)
        sums = torch.nn.functional.conv2d(grey, torch.ones_like(grey[:, :, :3, :3]))
        right = bool((sums == 13.5).all())
    except RuntimeError as error:
        return problem(check, f"{name}: {' '.join(str(error).split())[:200]}", "install a torch that is built for it")
    kind = f"compute capability {major}.{minor}, {'bfloat16' if major >= 8 else 'float32: it has no bfloat16'}"
    found = f"{name}, {kind}, {decimal(free)} free of {decimal(total)}; torch for CUDA {torch.version.cuda}"
    if not right:
        return problem(check, f"{found}; it computes wrong sums", "replace it, or hide it by CUDA_VISIBLE_DEVICES")
    if free < total / 2:
        return warning(check, found, "end what else is on it (nvidia-smi says), or lower --batch-size")
    return ok(check, found)
