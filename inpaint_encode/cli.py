"""The command line: options in, exit codes out."""

from __future__ import annotations

import difflib
import json
import os
import re
import signal
import sys
import threading
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

from cyclopts import App, Argument, ArgumentCollection, CycloptsError, Parameter, Token
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from . import __version__
from .cluster import protect_local_ray
from .errors import EncodeError, JobFailed, UsageError
from .settings import EncodeJob, PlanOptions, VerifyOptions

__all__ = ["INTERRUPTED", "main", "stop_on_signals"]

INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM."""

GRACE_S = 15.0

app = App(
    name="inpaint-encode",
    version=__version__,
    help="Image/mask pairs in a bucket become inpainting latents in Parquet.",
    default_parameter=Parameter(negative=()),
    suppress_keyboard_interrupt=False,
    help_format="plaintext",
)


@app.command
def encode(*, job: Annotated[EncodeJob, Parameter(name="*")]) -> None:
    """Encode every pair of the source; run it again after any interruption, and it goes on.

    Options may stand in a TOML file instead, spelled with underscores: --config job.toml; flags override it.
    Exit codes: 0 done, 1 failed, 2 wrong use, 3 more rejected pairs than --max-rejected allows.
    """
    protect_local_ray(job.run.address)
    from .pipeline import run_job
    from .progress import open_display

    with open_display() as display:
        whole = run_job(job, display)
    this = whole["this_run"]
    print(
        f"{whole['pairs']:,} pairs: {whole['encoded']:,} encoded, {whole['rejected']:,} rejected; this run "
        f"{this['encoded'] + this['rejected']:,} in {this['seconds']:,.1f} s\n"
        f"{job.output.output}: {whole['files']:,} files, {whole['data_bytes']:,} bytes"
    )


@app.command
def plan(*, options: Annotated[PlanOptions, Parameter(name="*")]) -> None:
    """Tell what an encode job will be: how many pairs and files, of which sizes, how many bytes, requests and hours.

    Lists the source and reads the headers of a sample of its images; what is estimated by them has its error beside it.
    Takes a job's --config file as it is. Nothing is written, and no Ray is started.
    Exit codes: 0 done, 1 failed, 2 wrong use.
    """
    from .estimate.run import estimate
    from .estimate.show import show
    from .progress import open_display

    with open_display() as display:
        forecast = estimate(options, display.say)
    if options.estimation.as_json:
        print(json.dumps(forecast.as_dict(), indent=2))
    else:
        show(forecast, Console(width=None if sys.stdout.isatty() else 140))


@app.command
def verify(options: Annotated[VerifyOptions, Parameter(name="*")]) -> None:
    """Check every file of an output against its plan, its settings and its sources, whoever wrote it and whatever died.

    Chunks that are not encoded yet are counted, and no damage. With --repair no encode may run at the same time.
    Exit codes: 0 whole, 1 could not be checked, 2 wrong use, 4 not whole.
    """
    protect_local_ray(options.address)
    from .progress import open_display
    from .verify.run import verify_output
    from .verify.verdict import show

    with open_display() as display:
        verdict = verify_output(options, display.say)
    show(verdict, Console(width=None if sys.stdout.isatty() else 140))
    verdict.refuse_unless_whole()


@app.command
def report(output: str) -> None:
    """Print the report of the last run that finished: counts, why pairs were rejected, seconds by stage.

    Exit codes: 0 done, 1 there is none or it cannot be read, 2 wrong use.

    Args:
        output: Folder or prefix that an encode command wrote.
    """
    from .show_report import read_report, show

    show(read_report(output), Console(width=None if sys.stdout.isatty() else 140))


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its code; the entry point of ``inpaint-encode`` and of every script in jobs/."""
    stop_on_signals()
    try:
        tokens = _without_config(sys.argv[1:] if arguments is None else arguments)
        _refuse_unknown(tokens)
        app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        cause = error.__cause__
        _fail(_sentences(cause) if isinstance(cause, ValidationError) else str(error), UsageError.exit_code)
    except EncodeError as error:
        _fail(str(error), error.exit_code)
    except (OSError, UnicodeError) as error:
        _fail(f"{error.__class__.__name__}: {error}; what is done stays", JobFailed.exit_code)
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
    Console(stderr=True).print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(code)


def _without_config(arguments: list[str]) -> list[str]:
    """Take ``--config FILE`` out of the arguments and let its values stand in for flags that are not given."""
    arguments = [part for argument in arguments for part in _split_config(argument)]
    if "--config" not in arguments:
        return arguments
    at = arguments.index("--config")
    if at + 1 == len(arguments):
        raise UsageError("--config needs a TOML file")
    app.config = _values_of(Path(arguments[at + 1]))
    return arguments[:at] + arguments[at + 2 :]


def _refuse_unknown(tokens: list[str]) -> None:
    """Before options are read: a misspelled one is what is wrong, and not that another is missing without it."""
    if not tokens or tokens[0].startswith("-") or tokens[0] not in app:
        return
    known = {name for option in app[tokens[0]].assemble_argument_collection() for name in option.names}
    known |= {"--help", "--version"}
    for name in (token.partition("=")[0] for token in tokens if token.startswith("--")):
        if name not in known:
            raise UsageError(f"unknown option {name}{_nearest(name, sorted(known))}")


def _split_config(argument: str) -> list[str]:
    return ["--config", argument.removeprefix("--config=")] if argument.startswith("--config=") else [argument]


def _sentences(error: ValidationError) -> str:
    """What pydantic found, an option at a time, in the words of the command line."""
    return "; ".join(
        one["msg"].removeprefix("Value error, ")
        if one["type"] == "value_error"
        else f"--{str(one['loc'][-1]).replace('_', '-')} {one['input']}: {one['msg']}{_nearest_choice(one)}"
        for one in error.errors()
    )


def _nearest_choice(one: Any) -> str:
    """Of an option that takes one of some words, the word nearest to what was given."""
    choices = re.findall(r"'([^']+)'", one["ctx"]["expected"]) if one["type"] == "literal_error" else []
    return _nearest(str(one["input"]).lower(), choices)


def _values_of(path: Path) -> Callable[[App, tuple[str, ...], ArgumentCollection], None]:
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, UnicodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"--config {path}: {error}") from error

    def fill(_app: App, _commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        options = _by_field(arguments)
        of_a_job = _by_field(app["encode"].assemble_argument_collection())
        for name, value in values.items():
            if name not in options and name in of_a_job:
                continue  # one file serves all commands on a job
            if name not in options:
                raise UsageError(f"{path}: unknown option {name!r}{_nearest(name, list(options))}")
            if not options[name].tokens:
                options[name].append(Token(keyword=name, value=str(value), source=str(path)))

    return fill


def _by_field(arguments: ArgumentCollection) -> dict[str, Argument]:
    return {argument.name.removeprefix("--").replace("-", "_"): argument for argument in arguments}


def _nearest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


if __name__ == "__main__":
    main()
