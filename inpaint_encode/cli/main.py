"""Options in, exit codes out: one command run from its first to its last moment."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

from cyclopts import CycloptsError
from rich.console import Console
from rich.markup import escape

from inpaint_encode.errors import EncodeError, JobFailed, UsageError
from inpaint_encode.stores.redaction import redacted

from .commands import app
from .config import configured, without_config
from .help import asks_for_help, prepare_help
from .spelling import explained, refuse_incomplete, refuse_unknown

__all__ = ["INTERRUPTED", "main", "stop_on_signals"]

INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM."""

GRACE_S = 15.0


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its code; the entry point of ``inpaint-encode`` and of every script in jobs/."""
    stop_on_signals()
    tokens = sys.argv[1:] if arguments is None else arguments
    try:
        if asks_for_help(tokens):
            tokens = prepare_help(tokens)
        else:
            tokens = without_config(tokens)
            refuse_unknown(tokens)
            refuse_incomplete(tokens, configured())
        app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        _fail(explained(error), UsageError.exit_code)
    except EncodeError as error:
        _fail(str(error), error.exit_code)
    except (OSError, UnicodeError) as error:
        advice = "what is done stays; `inpaint-encode doctor` tries disks and stores"
        _fail(f"{error.__class__.__name__}: {error}; {advice}", JobFailed.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted; the same command goes on from what is done", INTERRUPTED)


def stop_on_signals() -> None:
    """Let Ctrl-C and SIGTERM end this process in good order, and in any order after `GRACE_S` seconds.

    The second half is needed: an interrupt that meets a library in one of its callbacks is lost there.
    """
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    last_resort = threading.Timer(GRACE_S, os._exit, args=(INTERRUPTED,))
    last_resort.daemon = True
    last_resort.start()
    raise KeyboardInterrupt


def _fail(message: str, code: int) -> None:
    Console(stderr=True).print(f"[bold red]error:[/] {escape(redacted(message))}", highlight=False, soft_wrap=True)
    sys.exit(code)
