"""The memory of this machine, and a folder on it that only this user can open."""

from __future__ import annotations

import os
import stat
from functools import lru_cache
from pathlib import Path

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@lru_cache
def machine_memory() -> int:
    """Return the bytes of memory that this machine or this container has."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in _CGROUP_LIMITS:
        try:
            limits.append(int(Path(path).read_text()))
        except (OSError, ValueError):  # there is no such file, or it says "max"
            continue
    return min(limits)


def user_folder(root: str) -> Path | None:
    """Return this user's folder in a folder for temporary files, with mode 0700, for all processes of this machine.

    None if another user made it or can open it.
    """
    folder = Path(root, f"inpaint-encode-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    is_private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return folder if is_private else None
