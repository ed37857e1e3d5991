"""Entry point of all commands: errors and exit codes.

The base package does not include the command line's libraries. This module imports them late, so that it can say what
to install.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NoReturn

from inpaint_encode.errors import EncodeError, JobFailed, UsageError
from inpaint_encode.stores.redaction import for_terminal, redacted

from .signals import end_interrupted, ignore_signals, prefer_interrupt, stop_on_signals

TRACEBACK = "INPAINT_ENCODE_TRACEBACK"
"""Environment variable: 1 prints the traceback of an unexpected error."""

_MAX_LINE = 4_000
"""Characters of the line on stderr."""

_MAX_REASON = 500
"""Characters of an unexpected error's message in the line on stderr."""


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its code; the entry point of ``inpaint-encode`` and of every script in jobs/.

    Every error ends in one line on stderr. The traceback of an error that no part of the package expects is written to
    a file; with `TRACEBACK`, it is printed as well.

    Args:
        arguments: the command line without the program's name, by default that of this process.
    """
    stop_on_signals()
    tokens = sys.argv[1:] if arguments is None else arguments
    try:
        with prefer_interrupt():
            _run(tokens)
    except EncodeError as error:
        _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        # Ray raises a worker's error as a subclass of its type. To install a package here does not help a worker.
        if type(error) is not ModuleNotFoundError or not error.name or error.name.startswith("inpaint_encode"):
            _fail_unexpectedly(error, tokens)
        install = f"run: pip install 'inpaint-encode[job]' (missing: {str(error.name).partition('.')[0]})"
        _fail(f"{_command(tokens)} needs packages that are not installed; {install}", UsageError.exit_code)
    except (OSError, UnicodeError) as error:
        advice = "run `inpaint-encode doctor` to check disks and stores"
        _fail(f"reading or writing failed; {advice} ({type(error).__name__}: {error})", JobFailed.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted; run the same command again to resume", end_interrupted())
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # also pyo3's PanicException, which is no Exception
        _fail_unexpectedly(error, tokens)
    finally:
        ignore_signals()


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


def _command(tokens: list[str]) -> str:
    return tokens[0] if tokens and not tokens[0].startswith("-") else "inpaint-encode"


def _fail_unexpectedly(error: BaseException, tokens: list[str]) -> NoReturn:
    """Write the traceback to a new file that only this user can read, name it in one line, and exit."""
    text = redacted("".join(traceback.format_exception(error)))
    if os.environ.get(TRACEBACK, "") not in ("", "0"):
        print(text.encode(errors="backslashreplace").decode(), file=sys.stderr)
    reason = redacted(f"{type(error).__name__}: {error}")[:_MAX_REASON]
    try:
        path = Path(tempfile.mkdtemp(prefix="inpaint-encode-"), "traceback.txt")  # of mode 0700
        path.touch(0o600)
        path.write_text(text, errors="backslashreplace")
        where = f"the traceback is in {path}"
    except OSError as failure:
        where = f"{TRACEBACK}=1 prints the traceback (it could not be written to a file: {failure})"
    _fail(f"{_command(tokens)} failed unexpectedly: {reason}; {where}; please report it", JobFailed.exit_code)


def _fail(message: str, code: int) -> NoReturn:
    colored = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    line = " ".join(for_terminal(message).split())
    if len(line) > _MAX_LINE:  # a file of a stranger may have names of megabytes
        line = f"{line[: _MAX_LINE // 2]} … {line[-_MAX_LINE // 4 :]}"
    print("\x1b[1;31merror:\x1b[0m" if colored else "error:", line, file=sys.stderr)
    sys.exit(code)
