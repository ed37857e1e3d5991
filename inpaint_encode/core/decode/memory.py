"""Bounds the memory that decoding takes on a machine, whichever processes decode.

A 62 kB PNG can declare 64 megapixels, and a machine decodes one image per core. Large images therefore reserve a share
of the machine's memory before a pixel is decoded. The shares are locked files, so that a process that dies frees its
own.
"""

from __future__ import annotations

import fcntl
import logging
import tempfile
import time
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path

from inpaint_encode.core.machine import machine_memory, user_folder

UNCOUNTED_PIXELS = 2**24
"""Images up to this size reserve nothing: decoding one takes at most 0.3 GB."""

_SHARE_PIXELS = 2**24
_SHARE_BYTES = 2**28
"""A share is the memory for `_SHARE_PIXELS`: decoding takes 3 to 17 bytes per pixel, by format."""

_FRACTION = 4
"""Large images take at most a quarter of the machine's memory."""

MAX_WAIT_S = 600.0
"""Longest wait for memory in seconds, below the time that a file may take to be decoded."""

_POLL_S = 0.02
_LOG = logging.getLogger(__name__)


class DecodingMemory(ExitStack):
    """Memory for decoding one image or mask; leaving the ``with`` block frees it."""

    def reserve(self, pixels: int) -> None:
        """Reserve memory for this number of pixels, in place of an earlier reservation; wait until it is free.

        Processes collect their shares one after another. An image that needs more shares than the machine has gets all.
        After `MAX_WAIT_S` seconds, or if the locks cannot be used, it is decoded without them.
        """
        self.close()
        if pixels <= UNCOUNTED_PIXELS or (folder := _lock_folder()) is None:
            return
        shares = max(1, machine_memory() // _FRACTION // _SHARE_BYTES)
        free = [folder / f"share-{number}" for number in range(shares)]
        missing = min(shares, -(-pixels // _SHARE_PIXELS))
        deadline = time.monotonic() + MAX_WAIT_S
        with ExitStack() as queue:
            has_turn = False
            while missing and time.monotonic() < deadline:
                has_turn = has_turn or _lock(folder / "queue", queue)
                for path in tuple(free) if has_turn else ():
                    if missing and _lock(path, self):
                        free.remove(path)
                        missing -= 1
                if missing:
                    time.sleep(_POLL_S)


def _lock(path: Path, stack: ExitStack) -> bool:
    """Lock a file until the stack is closed; return False if another process has locked it."""
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    stack.enter_context(file)
    return True


@lru_cache
def _lock_folder() -> Path | None:
    folder = user_folder(tempfile.gettempdir())
    if folder is None:
        _LOG.warning("memory for large images is not reserved: this user has no private folder for temporary files")
    return folder
