"""Checks of one machine, without torch: Python, packages, memory, disks."""

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

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich.filesize import decimal

from .finding import Finding, ok, problem, warning

__all__ = [
    "Memory",
    "check_disk",
    "check_memory",
    "check_packages",
    "check_python",
    "check_shared_memory",
    "installed",
    "machine",
]

_NAMED = ("inpaint-encode", "ray", "torch", "diffusers", "pyarrow", "pillow", "numpy")
"""Packages whose versions are shown, the ones that ``_job.json`` keeps."""

FULL = 0.95
"""Share of a disk, and of memory, from which Ray stops spilling, and kills workers."""

ENOUGH, LITTLE = 4 * 10**9, 2 * 10**9
"""Bytes of memory: a job of a tiny VAE and 30 small images took 2.1 GB on two cores, Ray with all its processes in it;
a task that fetches photographs takes ten times --chunk-bytes on top, 0.7 GB by default."""

_OBJECT_STORE = 0.3
"""Of the memory that is free when Ray starts, for its object store in shared memory."""


def machine() -> Iterator[Finding]:
    """All checks of the machine that this process runs on."""
    try:
        declared, needed = metadata("inpaint-encode")["Requires-Python"], requires("inpaint-encode") or []
    except PackageNotFoundError:
        yield problem("packages", "inpaint-encode is not installed here", "pip install -c constraints.txt .")
    else:
        yield check_python(declared)
        yield check_packages(needed)
    memory = Memory.of_this_machine()
    yield check_memory(memory)
    yield check_shared_memory(Path("/dev/shm"), memory)  # noqa: S108 - Ray's choice
    yield check_disk("Ray's disk", _ray_folder(), "RAY_TMPDIR", FULL)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    yield check_disk("weights' disk", cache, "XDG_CACHE_HOME")


def _ray_folder() -> Path:
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp", "ray")  # noqa: S108 - as Ray does


def check_python(declared: str) -> Finding:
    """Hold this Python against what the package declares."""
    here = platform.python_version()
    if SpecifierSet(declared).contains(here, prereleases=True):
        return ok("Python", f"{here}, within {declared}")
    return problem("Python", f"{here} is not within {declared}", "make venv PYTHON=python3.12, or another within it")


def check_packages(needed: Iterable[str]) -> Finding:
    """Hold what is installed against requirements as pyproject.toml has them; those of extras are left out."""
    requirements = [one for one in map(Requirement, needed) if one.marker is None or one.marker.evaluate({"extra": ""})]
    found = {one: installed(one.name) for one in requirements}
    wrong = [one for one, there in found.items() if not there or not one.specifier.contains(there, prereleases=True)]
    if wrong:
        named = ", ".join(f"{one.name} {found[one] or 'is missing'}, not {one.specifier}" for one in wrong)
        install = " ".join(f"'{one}'" for one in wrong)
        return problem("packages", named, f"pip install -c constraints.txt . has what fits, or pip install {install}")
    versions = ", ".join(f"{name} {installed(name)}" for name in _NAMED)
    return ok("packages", f"{len(found)} within their ranges: {versions}")


def installed(package: str) -> str:
    """Return a package's version; empty if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


class Memory(NamedTuple):
    """In bytes, of the machine or of the container that limits it further."""

    total: int
    free: int
    limited: bool = False

    @classmethod
    def of_this_machine(cls, proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> Memory:
        """Read what the kernel says."""
        told = dict(re.findall(r"(?m)^(\w+): +(\d+) kB$", (proc / "meminfo").read_text()))
        total, free = int(told["MemTotal"]) * 1024, int(told["MemAvailable"]) * 1024
        for limit, used, statistics in _LIMITS:
            allowed = _number(cgroup / limit)
            if allowed is not None and allowed < total:
                taken = (_number(cgroup / used) or 0) - _file_cache(cgroup / statistics)
                return cls(allowed, min(free, allowed - taken), limited=True)
        return cls(total, free)


_LIMITS = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
"""A container's files of both versions of cgroups."""


def _file_cache(statistics: Path) -> int:
    """Bytes that the kernel takes back when they are needed; a container that has read files is never without."""
    try:
        told = dict(re.findall(r"(?m)^(?:total_)?((?:in)?active_file) (\d+)$", statistics.read_text()))
    except OSError:
        return 0
    return sum(map(int, told.values()))


def _number(path: Path) -> int | None:
    """What a file of the kernel's has; None if there is none, or it says ``max``."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def check_memory(memory: Memory) -> Finding:
    """Whether a job fits beside what is running already."""
    by = "that the container's limit leaves" if memory.limited else "of this machine"
    found = f"{decimal(memory.free)} free of {decimal(memory.total)} {by}"
    if memory.free < LITTLE or memory.free < (1 - FULL) * memory.total:
        advice = f"end what else is running: Ray kills workers from {FULL:.0%} on, and a small job takes 2 GB"
        return problem("memory", found, advice)
    if memory.free < ENOUGH:
        return warning("memory", found, "lower --chunk-rows and --chunk-bytes, and give --max-workers 1")
    return ok("memory", found)


def check_shared_memory(folder: Path, memory: Memory) -> Finding:
    """Whether Ray's object store fits into shared memory; where it does not, Ray puts it on a disk."""
    wanted = int(_OBJECT_STORE * memory.free)
    there = shutil.disk_usage(folder).free if folder.is_dir() else 0
    found = f"{decimal(there)} free in {folder}; Ray's object store takes {decimal(wanted)}"
    if there >= wanted:
        return ok("shared memory", found)
    size = f"{wanted * 1.1 / 2**30:.1f}gb"
    advice = f"give the container --shm-size={size}, on Kubernetes an emptyDir of medium Memory; on a disk it is slow"
    return warning("shared memory", found, advice)


def check_disk(check: str, folder: Path, option: str, full: float = 1.0) -> Finding:
    """Whether files can be made in a folder, or in the one that it will be made in, and how much room is there.

    Args:
        check: name of the check.
        folder: it need not be there yet.
        option: what names another folder.
        full: share of the disk from which on it is a problem that so much is taken.
    """
    there, elsewhere = folder, f"let {option} name a folder on another disk"
    try:
        there = next(one for one in (folder, *folder.parents) if one.exists())
        with tempfile.TemporaryFile(dir=there):
            usage = shutil.disk_usage(there)
    except OSError as error:
        return problem(check, f"{there} takes no files: {error.strerror}", elsewhere)
    found = f"{decimal(usage.free)} free of {decimal(usage.total)} at {there}"
    if usage.free <= (1 - full) * usage.total:
        why = "it is full" if full == 1 else f"over {full:.0%} is taken, where Ray stops spilling"
        return problem(check, f"{found}: {why}", f"free some of it, or {elsewhere}")
    return ok(check, found)
