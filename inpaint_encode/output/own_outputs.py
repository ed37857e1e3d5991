"""Remembers which outputs this user has encoded on this machine.

An output names servers, sources and a VAE. A command that shows an output would send credentials to such a server, read
such files, and load such a model. That is what its owner wants, and what a stranger must not get: ``_job.json`` of a
shared output is the stranger's text. So ``encode`` leaves a mark in the user's state folder, ``inpaint-encode/outputs``
below ``XDG_STATE_HOME`` (default ``~/.local/state``). The mark's name is a hash of the output's place and of what its
``_job.json`` names. Whoever changes one of these, or copies the file to another place, has an output without a mark.

Without a mark, or on another machine, commands use only what the user names again: see
`inpaint_encode.tools.recorded`. A mark is an empty file; delete marks as you like.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_NAMES = ("job", "source", "access", "vae_source")
"""Fields of ``_job.json`` that a mark covers: the job's name, and all that commands fetch or load."""


def mark_own(output: str, job: Mapping[str, Any]) -> None:
    """Mark an output as this user's; without a state folder that can be written, do nothing.

    Args:
        output: normalized URI.
        job: the contents of ``_job.json``.
    """
    with suppress(OSError, RuntimeError):
        mark = _mark(output, job)
        mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mark.touch(mode=0o600)


def is_own(output: str, job: Mapping[str, Any]) -> bool:
    """Return whether this user has encoded the output on this machine, with what its ``_job.json`` names now."""
    with suppress(OSError, RuntimeError):
        return bool(job) and _mark(output, job).is_file()
    return False


def _mark(output: str, job: Mapping[str, Any]) -> Path:
    """Return the path of an output's mark; RuntimeError if this user has no home folder."""
    place = output if "://" in output else os.path.realpath(output)
    named = {name: job.get(name) for name in _NAMES}
    name = hashlib.sha256(json.dumps([place, named], sort_keys=True, default=str).encode()).hexdigest()
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(state, "inpaint-encode", "outputs", name)
