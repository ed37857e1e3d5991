"""Entry point of all commands: signals, errors and exit codes.

The base package does not include the command line's libraries. This module imports them late, so that it can say what
to install.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

from inpaint_encode.errors import EncodeError, JobFailed, UsageError
from inpaint_encode.stores.redaction import for_terminal

INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM."""

GRACE_S = 15.0
"""Seconds between a signal and the forced exit."""


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its code; the entry point of ``inpaint-encode`` and of every script in jobs/.

    Args:
        arguments: the command line without the program's name, by default that of this process.
    """
    stop_on_signals()
    tokens = sys.argv[1:] if arguments is None else arguments
    try:
        _run(tokens)
    except EncodeError as error:
        _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        # Ray raises a worker's error as a subclass of its type. To install a package here does not help a worker.
        if type(error) is not ModuleNotFoundError or not error.name or error.name.startswith("inpaint_encode"):
            raise
        command = tokens[0] if tokens and not tokens[0].startswith("-") else "inpaint-encode"
        install = f"run: pip install 'inpaint-encode[job]' (missing: {error.name.partition('.')[0]})"
        _fail(f"{command} needs packages that are not installed; {install}", UsageError.exit_code)
    except (OSError, UnicodeError) as error:
        advice = "run `inpaint-encode doctor` to check disks and stores"
        _fail(f"reading or writing failed; {advice} ({type(error).__name__}: {error})", JobFailed.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted; run the same command again to resume", INTERRUPTED)


def _run(tokens: list[str]) -> None:
    from cyclopts import CycloptsError

    from .arguments import apply_config, describe_error, validate_options
    from .commands import app
    from .help import configure_help

    if not tokens or not {"--help", "-h", "--help-all"}.isdisjoint(tokens):  # help ignores all other errors
        tokens = configure_help(tokens)
    else:
        tokens, configured = apply_config(tokens)
        validate_options(tokens, configured)
    try:
        app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        raise UsageError(describe_error(error)) from error


def stop_on_signals() -> None:
    """Raise KeyboardInterrupt on Ctrl-C and SIGTERM, and exit after `GRACE_S` seconds if the process still runs.

    The forced exit is necessary: an exception that is raised in a library's callback may be lost.
    """
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    last_resort = threading.Timer(GRACE_S, os._exit, args=(INTERRUPTED,))
    last_resort.daemon = True
    last_resort.start()
    raise KeyboardInterrupt


def _fail(message: str, code: int) -> None:
    colored = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    print("\x1b[1;31merror:\x1b[0m" if colored else "error:", for_terminal(message), file=sys.stderr)
    sys.exit(code)
