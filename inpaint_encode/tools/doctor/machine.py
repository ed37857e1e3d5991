"""Checks of one machine: Python, packages, memory and disks, and with torch the CPU and each GPU."""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any, NamedTuple

from rich.filesize import decimal

from inpaint_encode.job.stages import LOGICAL_GPUS
from inpaint_encode.tools import pluralize

from .findings import Finding, ok, problem, warning

PACKAGES = ("inpaint-encode", "ray", "torch", "diffusers", "pyarrow", "pillow", "numpy")
"""Packages whose versions are shown and compared between nodes, the same as in ``_job.json``."""

RAY_LIMIT = 0.95
"""Share of a disk at which Ray stops spilling, and of memory at which it kills workers."""

ENOUGH_MEMORY, LEAST_MEMORY = 4 * 10**9, 2 * 10**9
"""Bytes. A job with a tiny VAE and 30 small images took 2.1 GB on two cores, with all processes of Ray. A task that
fetches photographs takes ten times --chunk-bytes more, by default 0.7 GB."""

_OBJECT_STORE = 0.3
"""Share of free memory that Ray reserves in shared memory for its object store."""

_VECTOR_UNITS = {"AVX2", "AVX512"}
"""Without AVX2 or AVX512, an x86 CPU rounds some pixels of a resized mask differently: 36 of 7.4 million in a test."""

_DRIVER = Path("/proc/driver/nvidia/version")


def check_machine() -> Iterator[Finding]:
    """Check the machine that this process runs on."""
    try:
        python, packages = metadata("inpaint-encode")["Requires-Python"], requires("inpaint-encode") or []
    except PackageNotFoundError:
        advice = "install it: pip install -c constraints.txt '.[job]'"
        yield problem("packages", "inpaint-encode is not installed", advice)
    else:
        yield check_python(python)
        yield check_packages(packages)
    memory = Memory.of_this_machine()
    yield check_memory(memory)
    yield check_shared_memory(Path("/dev/shm"), memory)  # noqa: S108 - the folder that Ray uses
    temporary = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - as Ray chooses it
    yield check_disk("Ray's disk", Path(temporary, "ray"), "RAY_TMPDIR", RAY_LIMIT)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    yield check_disk("disk of the model cache", cache, "XDG_CACHE_HOME")


def check_python(required: str) -> Finding:
    """Check the version of Python against the package's ``Requires-Python``."""
    here = platform.python_version()
    if _satisfies(here, required):
        return ok("Python", f"{here} (needs {required})")
    advice = f"use Python {required}, for example: make venv PYTHON=python3.12"
    return problem("Python", f"{here} is not supported (needs {required})", advice)


def check_packages(requirements: Iterable[str]) -> Finding:
    """Check the versions of packages against the requirements of the base package and of its extra ``job``."""
    checked, wrong, install = 0, [], []
    for requirement in requirements:
        named, _, marker = requirement.partition(";")
        if marker and not re.search(r"""extra == ["']job["']""", marker):
            continue
        checked += 1
        name = re.split(r"[^\w.-]", named.strip(), maxsplit=1)[0]
        ranges = ",".join(re.findall(r"[<>=!~]+ *[\w.*]+", named))
        here = installed_version(name)
        if not here or not _satisfies(here, ranges):
            wrong.append(f"{name} {here or 'is missing'} (needs {ranges})")
            install.append(f"'{named.strip()}'")
    if wrong:
        advice = f"pip install {' '.join(install)}, or all tested versions: pip install -c constraints.txt '.[job]'"
        return problem("packages", ", ".join(wrong), advice)
    versions = ", ".join(f"{name} {installed_version(name)}" for name in PACKAGES)
    return ok("packages", f"{pluralize(checked, 'package')} checked, all versions are supported: {versions}")


def _satisfies(here: str, ranges: str) -> bool:
    """Return whether a version is within ranges of ``>=`` and ``<``, the operators that pyproject.toml uses."""
    bounds = [(operator, _release(bound)) for operator, bound in re.findall(r"(>=|<)\s*([\d.]+)", ranges)]
    return all(_release(here) >= bound if operator == ">=" else _release(here) < bound for operator, bound in bounds)


def _release(text: str) -> list[int]:
    """Return the numbers of a version without zeros at the end, so that 3.14 and 3.14.0 are equal."""
    numbers = [int(number) for number in re.split(r"[^\d.]", text, maxsplit=1)[0].split(".") if number]
    while numbers and not numbers[-1]:
        numbers.pop()
    return numbers


def installed_version(package: str) -> str:
    """Return the version of a package, empty if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


class Memory(NamedTuple):
    """Memory in bytes, of the machine or of the container with a lower limit."""

    total: int
    free: int
    limited: bool = False

    @classmethod
    def of_this_machine(cls, proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> Memory:
        """Read the kernel's numbers, with the container's limit by version 2 or 1 of cgroups."""
        kilobytes = dict(re.findall(r"(?m)^(\w+): +(\d+) kB$", (proc / "meminfo").read_text()))
        total, free = int(kilobytes["MemTotal"]) * 1024, int(kilobytes["MemAvailable"]) * 1024
        for limit_file, used_file, statistics in (
            ("memory.max", "memory.current", "memory.stat"),
            ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
        ):
            limit = _read(cgroup / limit_file)  # the file contains ``max`` if there is no limit
            if limit.isdigit() and int(limit) < total:
                # The kernel counts cached files as used, but frees them when memory is needed.
                cached = dict(re.findall(r"(?m)^(?:total_)?((?:in)?active_file) (\d+)$", _read(cgroup / statistics)))
                used = int(_read(cgroup / used_file) or 0) - sum(map(int, cached.values()))
                return cls(int(limit), min(free, int(limit) - used), limited=True)
        return cls(total, free)


def _read(path: Path) -> str:
    return path.read_text().strip() if path.is_file() else ""


def check_memory(memory: Memory) -> Finding:
    """Check whether a job fits in free memory."""
    limit = ", the limit of the container" if memory.limited else ""
    found = f"{decimal(memory.free)} free of {decimal(memory.total)}{limit}"
    if memory.free < LEAST_MEMORY or memory.free < (1 - RAY_LIMIT) * memory.total:
        advice = (
            f"stop other processes: a small job takes 2 GB, and Ray kills workers when {RAY_LIMIT:.0%} of it is used"
        )
        return problem("memory", found, advice)
    if memory.free < ENOUGH_MEMORY:
        return warning("memory", found, "lower --chunk-rows and --chunk-bytes, and give --max-workers 1")
    return ok("memory", found)


def check_shared_memory(folder: Path, memory: Memory) -> Finding:
    """Check whether Ray's object store fits in shared memory; otherwise Ray puts it on a disk."""
    needed = int(_OBJECT_STORE * memory.free)
    free = shutil.disk_usage(folder).free if folder.is_dir() else 0
    found = f"{decimal(free)} free in {folder}; Ray's object store takes {decimal(needed)}"
    if free >= needed:
        return ok("shared memory", found)
    size = f"{needed * 1.1 / 2**30:.1f}gb"
    advice = f"start the container with --shm-size={size}, on Kubernetes with an emptyDir of medium Memory; "
    return warning("shared memory", found, f"{advice}otherwise Ray uses a disk, which is slow")


def check_disk(check: str, folder: Path, variable: str, full: float = 1.0) -> Finding:
    """Check whether files can be created in a folder, and the free space there.

    Args:
        check: name of the check.
        folder: checked by its nearest parent if it does not exist.
        variable: option or variable that sets the folder.
        full: used share of the disk at which it counts as full.
    """
    parent, advice = folder, f"set {variable} to a folder on another disk"
    try:
        parent = next(one for one in (folder, *folder.parents) if one.exists())
        with tempfile.TemporaryFile(dir=parent):
            usage = shutil.disk_usage(parent)
    except OSError as error:
        return problem(check, f"no file can be created in {parent} ({error.strerror})", advice)
    found = f"{decimal(usage.free)} free of {decimal(usage.total)} at {parent}"
    if usage.free <= (1 - full) * usage.total:
        why = (
            "the disk is full"
            if full == 1
            else f"over {full:.0%} is used, and Ray no longer moves objects from memory to it"
        )
        return problem(check, f"{found}; {why}", f"free space on it, or {advice}")
    return ok(check, found)


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
    found = f"{pluralize(cores, 'core')}; torch uses {vector_unit}"
    if vector_unit in _VECTOR_UNITS:
        return ok("CPU", found)
    advice = "a few mask pixels differ between CPUs with and without AVX2; do not mix them in one output"
    return warning("CPU", found, advice)


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
        yield problem("GPU", f"the NVIDIA driver is installed, but {build}", advice)
    else:
        reason = "no GPU is visible"
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        except (RuntimeError, AssertionError) as error:
            reason = " ".join(str(error).split())
        advice = "unset CUDA_VISIBLE_DEVICES if it hides the GPUs; otherwise install a newer driver, at least 580 for "
        advice += f"CUDA 13 or 525 for CUDA 12, {or_cpu}"
        yield problem("GPU", f"the NVIDIA driver is installed and {build}, but torch finds no GPU ({reason})", advice)


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
