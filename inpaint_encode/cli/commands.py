"""Every command: its options, what it prints, its exit codes; the work is elsewhere, and imported when it is wanted."""

from __future__ import annotations

import json
import sys
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console

from inpaint_encode import __version__
from inpaint_encode.errors import JobFailed
from inpaint_encode.job.cluster import protect_local_ray
from inpaint_encode.settings import (
    EncodeJob,
    ExportOptions,
    PlanOptions,
    ReportOptions,
    ShowOptions,
    VerifyOptions,
    in_words,
    measured_in,
)

__all__ = ["app"]

app = App(
    name="inpaint-encode",
    version=__version__,
    help=r"""Image/mask pairs in a bucket become inpainting latents in Parquet.

    inpaint-encode doctor s3://bucket/images --output s3://bucket/latents
    inpaint-encode encode --images s3://bucket/images --masks s3://bucket/masks \
        --vae stabilityai/sd-vae-ft-mse --output s3://bucket/latents""",
    default_parameter=Parameter(negative=(), show_default=in_words),
    suppress_keyboard_interrupt=False,
    help_format="plaintext",
)


@app.command(sort_key=1)
def doctor(
    *uris: str,
    output: Annotated[str, measured_in("URI")] = "",
    address: Annotated[str, measured_in("HOST:PORT")] = "",
    no_ray: bool = False,
) -> None:
    """Check this machine, its Ray and the buckets, and say what to do.

    inpaint-encode doctor s3://bucket/images --output s3://bucket/latents

    A cluster's nodes, too: ray job submit --working-dir . -- python jobs/doctor.py
    Exit codes: 0 no problem, 1 a problem, 2 wrong use, 130 interrupted.

    Args:
        uris: Prefixes or files that are to be read: each is listed, and an object of it is read.
        output: Folder or prefix that is to be written: a small object is written there, replaced and deleted.
        address: Ray cluster to join, whose nodes are checked; by default as RAY_ADDRESS says, else one is started here.
        no_ray: Start and join no Ray, which takes some ten seconds; only this machine and the buckets are checked.
    """
    protect_local_ray(address)
    from inpaint_encode.job.progress import open_display
    from inpaint_encode.tools.doctor.run import diagnose
    from inpaint_encode.tools.doctor.show import Shown

    with open_display() as display:
        shown = Shown(Console(width=None if sys.stdout.isatty() else 140))
        for finding in diagnose(uris, output, address, ray=not no_ray, say=display.say):
            shown.add(finding)
    shown.refuse_problems()


@app.command(sort_key=3)
def encode(*, job: Annotated[EncodeJob, Parameter(name="*")]) -> None:
    r"""Encode every pair; after any interruption the same command goes on.

    inpaint-encode encode --images s3://bucket/images --masks s3://bucket/masks \
        --vae stabilityai/sd-vae-ft-mse --output s3://bucket/latents

    Exit codes: 0 done, 1 failed, 2 wrong use, 3 too many rejects, 130 interrupted.
    """
    protect_local_ray(job.run.address)
    from inpaint_encode.job.pipeline import run_job
    from inpaint_encode.job.progress import open_display

    with open_display() as display:
        whole = run_job(job, display)
    this = whole["this_run"]
    print(
        f"{whole['pairs']:,} pairs: {whole['encoded']:,} encoded, {whole['rejected']:,} rejected; this run "
        f"{this['encoded'] + this['rejected']:,} in {this['seconds']:,.1f} s\n"
        f"{job.output.output}: {whole['files']:,} files, {whole['data_bytes']:,} bytes"
    )


@app.command(sort_key=2)
def plan(*, options: Annotated[PlanOptions, Parameter(name="*")]) -> None:
    r"""Tell what an encode job will be: pairs, files, bytes, requests, hours.

    inpaint-encode plan --images s3://bucket/images --masks s3://bucket/masks \
        --vae stabilityai/sd-vae-ft-mse --calibrate 60

    Lists the source and reads the headers of a sample of its images; no Ray starts.
    Takes a job's --config file as it is. What is estimated has its error beside it.
    Exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted.
    """
    from inpaint_encode.job.progress import open_display
    from inpaint_encode.tools.plan.run import estimate
    from inpaint_encode.tools.plan.show import show

    with open_display() as display:
        forecast = estimate(options, display.say)
    if options.estimation.as_json:
        print(json.dumps(forecast.as_dict(), indent=2))
    else:
        show(forecast, Console(width=None if sys.stdout.isatty() else 140))


@app.command(sort_key=6)
def verify(options: Annotated[VerifyOptions, Parameter(name="*")]) -> None:
    """Check every file of an output against its plan, settings and sources.

    inpaint-encode verify s3://bucket/latents --sample 100

    Chunks that are not encoded yet are counted, and no damage.
    Exit codes: 0 whole, 1 could not check, 2 wrong use, 4 not whole, 130 interrupted.
    """
    protect_local_ray(options.address)
    from inpaint_encode.job.progress import open_display
    from inpaint_encode.tools.verify.run import verify_output
    from inpaint_encode.tools.verify.verdict import show

    with open_display() as display:
        verdict = verify_output(options, display.say)
    show(verdict, Console(width=None if sys.stdout.isatty() else 140))
    verdict.refuse_unless_whole()


@app.command(sort_key=4)
def info(output: str, *, as_json: bool = False) -> None:
    """Tell what an output is, from its metadata: counts, sizes, settings.

    inpaint-encode info s3://bucket/latents

    Lists the output and reads a few small objects, no row; a job may run meanwhile.
    Exit codes: 0 done, 1 it cannot be read, 2 wrong use, 130 interrupted.

    Args:
        output: Folder or prefix that an encode command wrote.
        as_json: Print JSON instead of tables.
    """
    from inpaint_encode.tools.inspect.info import print_info, read_info

    found = read_info(output)
    if as_json:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        print_info(found, Console(width=None if sys.stdout.isatty() else 140))


@app.command(sort_key=5)
def report(output: str, /, *, options: Annotated[ReportOptions, Parameter(name="*")] = ReportOptions()) -> None:
    """Print the last finished run's report, and write a page of what is there.

    inpaint-encode report s3://bucket/latents --html report.html

    The page is one HTML file that asks for nothing from elsewhere; of a large output it reads a
    sample, and says which. Of an output that is not finished it shows the files that are there.
    Exit codes: 0 done, 1 something cannot be read, 2 wrong use, 130 interrupted.

    Args:
        output: Folder or prefix that an encode command wrote.
        options: What is looked at, and where the page goes.
    """
    from inpaint_encode.job.progress import open_display
    from inpaint_encode.tools.inspect.report import print_report, write_page
    from inpaint_encode.tools.inspect.summary import read_report

    found = read_report(output)
    if found:
        print_report(found, Console(width=None if sys.stdout.isatty() else 140))
    elif options.html:
        print(f"no run has finished at {output} yet")
    else:
        raise JobFailed(f"there is no {output}/_report.json: a job writes it when it ends; a page needs none")
    if options.html:
        with open_display() as display:
            page = write_page(output, options, display.say)
        print(f"a page of {page.size:,} bytes: {page.uri}")


@app.command(sort_key=7)
def show(output: str, key: str, /, *, options: Annotated[ShowOptions, Parameter(name="*")] = ShowOptions()) -> None:
    """Show one row: a table of its columns, its pictures side by side in a file.

    inpaint-encode show s3://bucket/latents a/042 --picture a-042.png

    Exit codes: 0 done, 1 cannot be read, 2 wrong use or no such row, 130 interrupted.

    Args:
        output: Folder or prefix that an encode command wrote.
        key: Of the row.
        options: How it is decoded, and where the picture goes.
    """
    from inpaint_encode.job.progress import open_display
    from inpaint_encode.tools.inspect.show import print_row, show_row

    with open_display() as display:
        shown = show_row(output, key, options, display.say)
    print_row(shown, Console(width=None if sys.stdout.isatty() else 140))


@app.command(sort_key=8)
def export(
    output: str,
    /,
    *,
    options: Annotated[ExportOptions, Parameter(name="*")],
) -> None:
    """Write an output's rows as files for other tools; nothing is encoded again.

    inpaint-encode export s3://bucket/latents --to comfyui --output ComfyUI/input

    Run it again after any interruption, or when the output has grown: it goes on from what is done.
    Exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted.

    Args:
        output: Folder or prefix that an encode command wrote, finished or not.
        options: As what, and where to.
    """
    protect_local_ray(options.address)
    from inpaint_encode.job.progress import open_display
    from inpaint_encode.tools.export.pipeline import export_output

    with open_display() as display:
        made = export_output(output, options, display.say)
    print(
        f"{made.whole.rows:,} rows for {options.to}; this run {made.rows_now:,} in {made.seconds:,.1f} s\n"
        f"{made.uri}: {made.whole.files:,} files, {made.whole.bytes:,} bytes"
    )
