"""Checks of torch, the CPU, and each GPU by a small computation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from inpaint_encode.job.stages import LOGICAL_GPUS

from .findings import Finding, ok, plural, problem, warning

__all__ = ["check_cpu", "check_devices", "check_gpus"]

_VECTOR_UNITS = {"AVX2", "AVX512"}
"""Without one of these, an x86 CPU rounds some pixels of a resized mask the other way: 36 of 7.4 million in a test."""

_DRIVER = Path("/proc/driver/nvidia/version")


def check_devices(*, gpu_reserved: bool = False, gpus: bool = True) -> Iterator[Finding]:
    """Check what the VAE would run on.

    Args:
        gpu_reserved: Ray has reserved a GPU for this process, so a missing GPU is a problem.
        gpus: check GPUs, too; Ray hides them from workers without a reserved GPU.
    """
    try:
        import torch
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())
        yield problem("torch", f"cannot be imported ({reason})", "install it: pip install -c constraints.txt '.[job]'")
        return
    yield check_cpu(torch.backends.cpu.get_cpu_capability(), len(os.sched_getaffinity(0)))
    if gpus:
        yield from check_gpus(_DRIVER, gpu_reserved=gpu_reserved)


def check_cpu(vector_unit: str, cores: int) -> Finding:
    """Check the vector unit of the CPU, by torch's name for it."""
    found = f"{plural(cores, 'core')}; torch uses {vector_unit}"
    if vector_unit in _VECTOR_UNITS:
        return ok("CPU", found)
    return warning("CPU", found, "use one kind of CPU for a whole output: without AVX2, a few mask pixels differ")


def check_gpus(driver: Path, *, gpu_reserved: bool) -> Iterator[Finding]:
    """Compute on each GPU, or find out why there is none.

    Args:
        driver: file that exists if NVIDIA's driver is installed.
        gpu_reserved: a missing GPU is a problem.
    """
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield _check_gpu(torch, index)
        return
    build = f"torch {torch.__version__} is built for {f'CUDA {torch.version.cuda}' if torch.version.cuda else 'CPUs'}"
    or_cpu = "or give --gpus-per-worker 0"
    if gpu_reserved and os.environ.get(LOGICAL_GPUS) == "1":
        yield ok("GPU", f"a logical one, because {LOGICAL_GPUS}=1; {build}")
    elif not driver.exists():
        advice = f"install an NVIDIA driver on GPU nodes, {or_cpu}; a VAE on a CPU takes seconds per image"
        level = problem if gpu_reserved else warning
        yield level("GPU", f"none, because there is no NVIDIA driver; {build}", advice)
    elif torch.version.cuda is None:
        advice = f"install torch for CUDA, as in the cluster's cuda image, {or_cpu}"
        yield problem("GPU", f"there is an NVIDIA driver, but {build}", advice)
    else:
        advice = f"install a newer driver, 580 for CUDA 13 or 525 for CUDA 12, {or_cpu}"
        yield problem("GPU", f"there is an NVIDIA driver, {build}, but finds no GPU ({_cuda_error(torch)})", advice)


def _cuda_error(torch: Any) -> str:
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return " ".join(str(error).split())
    return "no GPU is visible; CUDA_VISIBLE_DEVICES may hide it"


def _check_gpu(torch: Any, index: int) -> Finding:
    """Check a GPU by a convolution with a known result, which fails if torch has no kernels for this GPU."""
    name, check = torch.cuda.get_device_name(index), f"GPU {index}"
    major, minor = torch.cuda.get_device_capability(index)
    dtype = torch.bfloat16 if major >= 8 else torch.float32
    try:
        free, total = torch.cuda.mem_get_info(index)
        grey = torch.full((1, 3, 64, 64), 0.5, device=f"cuda:{index}", dtype=dtype)
        sums = torch.nn.functional.conv2d(grey, torch.ones_like(grey[:, :, :3, :3]))
        correct = bool((sums == 13.5).all())
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        return problem(check, f"{name} cannot compute ({reason})", "install a torch that is built for this GPU")
    precision = "bfloat16" if major >= 8 else "float32, because it has no bfloat16"
    found = f"{name}, compute capability {major}.{minor}, {precision}, {decimal(free)} of {decimal(total)} free"
    found += f"; torch for CUDA {torch.version.cuda}"
    if not correct:
        return problem(check, f"{found}; its results are wrong", "replace it, or hide it with CUDA_VISIBLE_DEVICES")
    if free < total / 2:
        return warning(check, found, "stop other processes on it (see nvidia-smi), or lower --batch-size")
    return ok(check, found)
