"""Every command: its options, what it prints, its exit codes; the work is elsewhere, and imported when it is wanted."""

from __future__ import annotations

import json
import sys
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console

from inpaint_encode import __version__
from inpaint_encode.cluster import protect_local_ray
from inpaint_encode.errors import JobFailed
from inpaint_encode.settings import EncodeJob, PlanOptions, ReportOptions, ShowOptions, VerifyOptions

__all__ = ["app"]

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
    from inpaint_encode.pipeline import run_job
    from inpaint_encode.progress import open_display

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
    from inpaint_encode.estimate.run import estimate
    from inpaint_encode.estimate.show import show
    from inpaint_encode.progress import open_display

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
    from inpaint_encode.progress import open_display
    from inpaint_encode.verify.run import verify_output
    from inpaint_encode.verify.verdict import show

    with open_display() as display:
        verdict = verify_output(options, display.say)
    show(verdict, Console(width=None if sys.stdout.isatty() else 140))
    verdict.refuse_unless_whole()


@app.command
def report(options: Annotated[ReportOptions, Parameter(name="*")]) -> None:
    """Print the report of the last run that finished, and write a page that shows what the output holds.

    The page is one HTML file and asks for nothing from elsewhere: counts and reasons, sizes, masks, latents by channel,
    rate and stages, and rows in pictures. Of a large output it reads a sample, and says which. Of one that is not
    finished it shows the files that are there.
    Exit codes: 0 done, 1 something cannot be read, 2 wrong use.
    """
    from inpaint_encode.progress import open_display
    from inpaint_encode.view.table import read_report, show

    found = read_report(options.output)
    if found:
        show(found, Console(width=None if sys.stdout.isatty() else 140))
    elif options.html:
        print(f"no run has finished at {options.output} yet")
    else:
        raise JobFailed(f"there is no {options.output}/_report.json: a job writes it when it ends; a page needs none")
    if options.html:
        from inpaint_encode.view.report import write_page

        with open_display() as display:
            page = write_page(options, display.say)
        print(f"a page of {page.size:,} bytes: {page.uri}")


@app.command
def show(options: Annotated[ShowOptions, Parameter(name="*")]) -> None:
    """Show one row: its columns and its latent as a table, its pictures side by side in a file.

    Exit codes: 0 done, 1 something cannot be read, 2 wrong use, or there is no such row.
    """
    from inpaint_encode.progress import open_display
    from inpaint_encode.view.show import print_row, show_row

    with open_display() as display:
        shown = show_row(options, display.say)
    print_row(shown, Console(width=None if sys.stdout.isatty() else 140))
