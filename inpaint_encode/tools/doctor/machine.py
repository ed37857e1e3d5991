"""Checks of one machine without torch: Python, packages, memory and disks."""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import NamedTuple

from rich.filesize import decimal

from .findings import Finding, ok, problem, warning

__all__ = ["PACKAGES", "Memory", "check_disk", "check_machine", "installed_version"]

PACKAGES = ("inpaint-encode", "ray", "torch", "diffusers", "pyarrow", "pillow", "numpy")
"""Packages whose versions are shown and compared between nodes, the same as in ``_job.json``."""

RAY_LIMIT = 0.95
"""Share of a disk at which Ray stops spilling, and of memory at which it kills workers."""

ENOUGH_MEMORY, LEAST_MEMORY = 4 * 10**9, 2 * 10**9
"""Bytes. A job with a tiny VAE and 30 small images took 2.1 GB on two cores, with all processes of Ray. A task that
fetches photographs takes ten times --chunk-bytes more, by default 0.7 GB."""

_OBJECT_STORE = 0.3
"""Share of free memory that Ray reserves in shared memory for its object store."""


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
    yield check_disk("weights' disk", cache, "XDG_CACHE_HOME")


def check_python(required: str) -> Finding:
    """Check the version of Python against the package's ``Requires-Python``."""
    here = platform.python_version()
    if _satisfies(here, required):
        return ok("Python", f"{here}, within {required}")
    return problem(
        "Python", f"{here} is not within {required}", "use such a version, for example: make venv PYTHON=python3.12"
    )


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
            wrong.append(f"{name} {here or 'is missing'}, not {ranges}")
            install.append(f"'{named.strip()}'")
    if wrong:
        advice = f"pip install {' '.join(install)}, or all tested versions: pip install -c constraints.txt '.[job]'"
        return problem("packages", ", ".join(wrong), advice)
    versions = ", ".join(f"{name} {installed_version(name)}" for name in PACKAGES)
    return ok("packages", f"{checked} within their ranges: {versions}")


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
            limit = _read_number(cgroup / limit_file)
            if limit is not None and limit < total:
                used = (_read_number(cgroup / used_file) or 0) - _file_cache(cgroup / statistics)
                return cls(limit, min(free, limit - used), limited=True)
        return cls(total, free)


def _file_cache(statistics: Path) -> int:
    """Return the bytes of cached files, which the kernel counts as used but frees when memory is needed."""
    if not statistics.is_file():
        return 0
    found = dict(re.findall(r"(?m)^(?:total_)?((?:in)?active_file) (\d+)$", statistics.read_text()))
    return sum(map(int, found.values()))


def _read_number(path: Path) -> int | None:
    """Return the number in a kernel file, None if there is no file or no limit (``max``)."""
    text = path.read_text().strip() if path.is_file() else ""
    return int(text) if text.isdigit() else None


def check_memory(memory: Memory) -> Finding:
    """Check whether a job fits in free memory."""
    limit = ", the limit of the container" if memory.limited else ""
    found = f"{decimal(memory.free)} free of {decimal(memory.total)}{limit}"
    if memory.free < LEAST_MEMORY or memory.free < (1 - RAY_LIMIT) * memory.total:
        advice = f"stop other processes: a small job takes 2 GB, and Ray kills workers when {RAY_LIMIT:.0%} are used"
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
        why = "the disk is full" if full == 1 else f"over {full:.0%} are used, and Ray stops spilling"
        return problem(check, f"{found}; {why}", f"free space on it, or {advice}")
    return ok(check, found)
