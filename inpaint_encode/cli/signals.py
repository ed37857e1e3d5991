"""Ctrl-C and SIGTERM: the first signal ends the command with its clean-up, and no later signal interrupts the clean-up.

SIGTERM comes from Kubernetes, Slurm, ``ray job stop`` and machines that are taken away; each kills the process some
seconds later.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GRACE_S = 15.0
"""Seconds between the first signal and the forced exit."""

REPEAT_S = 1.0
"""Seconds between two tries to interrupt the command: a library's callback may lose the exception."""

RELEASE_S = 3.0
"""Seconds that the forced exit waits for the store while it releases leases."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _State:
    """The first signal of this process, and whether the command has ended."""

    received = 0
    ended = False
    wakeup_fd = -1


def stop_on_signals() -> None:
    """Raise KeyboardInterrupt in the main thread at the first Ctrl-C or SIGTERM.

    A thread watches the clean-up. It raises again if the exception is lost, and ends the process after `GRACE_S`
    seconds, also while the main thread is inside a call that Python cannot interrupt.
    """
    _State.received, _State.ended = 0, False
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    if _State.wakeup_fd == -1:
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        _State.wakeup_fd = writer.detach()
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # a child's signals are its own
        threading.Thread(target=_watch, args=(reader,), name="signals", daemon=True).start()
    # Python writes each signal's number there at once; its handlers wait for the main thread.
    signal.set_wakeup_fd(_State.wakeup_fd, warn_on_full_buffer=False)


@contextmanager
def prefer_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt in place of any error after a signal: libraries and clean-ups raise others."""
    try:
        yield
    except BaseException as error:
        if _State.received:
            raise KeyboardInterrupt from error
        raise


def ignore_signals() -> None:
    """Let no later signal interrupt Python's own end, which would print a traceback; it takes at most `GRACE_S`."""
    _State.ended = True


def end_interrupted() -> int:
    """Finish the clean-up of an interrupted command; return its exit code: 130 after Ctrl-C, 143 after SIGTERM."""
    ignore_signals()
    _release_leases()
    return 128 + (_State.received or signal.SIGINT)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    _State.received = _State.received or number
    if not _State.ended and not _cleaning_up():
        raise KeyboardInterrupt


def _cleaning_up() -> bool:
    """Return whether the main thread handles a KeyboardInterrupt, in a ``finally`` or the exit of a ``with``."""
    error = sys.exception()
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _watch(reader: socket.socket) -> None:
    while not (numbers := [number for number in reader.recv(64) if number in _SIGNALS]):
        continue
    _State.received = _State.received or numbers[0]
    deadline = time.monotonic() + GRACE_S
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(min(REPEAT_S, left))
        if not _State.ended:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    releasing = threading.Thread(target=_release_leases, daemon=True)
    releasing.start()
    releasing.join(RELEASE_S)
    os._exit(128 + _State.received)


def _release_leases() -> None:
    """Release every lease that this process still holds, so that the next run starts at once."""
    if "inpaint_encode.output.lease" in sys.modules:
        from inpaint_encode.output.lease import release_all

        release_all()
