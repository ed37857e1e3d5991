"""Every command: its options, its output and its exit codes. Commands import the code that they run when they run."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import App, Parameter

from inpaint_encode import __version__
from inpaint_encode.errors import JobFailed
from inpaint_encode.job.cluster import secure_local_ray
from inpaint_encode.job.progress import SafeConsole, open_display
from inpaint_encode.settings import (
    EncodeJob,
    ExportOptions,
    PlanOptions,
    ReportOptions,
    ShowOptions,
    VerifyOptions,
    format_value,
    unit,
)
from inpaint_encode.stores.redaction import for_terminal, redacted_json

app = App(
    name="inpaint-encode",
    version=__version__,
    help=r"""Encode image/mask pairs in a bucket into inpainting latents in Parquet.

    inpaint-encode doctor s3://bucket/images --output s3://bucket/latents
    inpaint-encode encode --images s3://bucket/images --masks s3://bucket/masks \
        --vae stabilityai/sd-vae-ft-mse --output s3://bucket/latents""",
    default_parameter=Parameter(negative=(), show_default=format_value),
    suppress_keyboard_interrupt=False,
    help_format="plaintext",
)


def _console() -> SafeConsole:
    """Return a console as wide as the terminal, or of 140 columns for a file or a pipe."""
    return SafeConsole(width=None if sys.stdout.isatty() else 140)


def _print(text: str) -> None:
    """Print lines to standard output."""
    print(for_terminal(text))


@app.command(sort_key=1, usage="inpaint-encode doctor [URI...] [OPTIONS]")
def doctor(
    *uris: str,
    output: Annotated[str, unit("URI")] = "",
    address: Annotated[str, unit("HOST:PORT", "RAY_ADDRESS")] = "",
    no_ray: bool = False,
) -> None:
    """Check this machine, Ray, the sources and the output before a job.

    inpaint-encode doctor s3://bucket/images --output s3://bucket/latents

    To check the nodes of a cluster: ray job submit --working-dir . -- python jobs/doctor.py
    Exit codes: 0 no problem, 1 problems found, 2 bad usage, 130/143 stopped.

    Args:
        uris: Sources to check: prefixes, folders or files. Each is listed, and one object in it is read.
        output: Folder or prefix of an output to check. A small object is written to it, replaced, read and deleted.
        address: Ray cluster to join. Its nodes are checked. The default is RAY_ADDRESS, which `ray job submit` sets.
            If neither is set, Ray starts on this machine.
        no_ray: Check only this machine and the stores, without Ray. This saves about ten seconds.
    """
    secure_local_ray(address)
    from inpaint_encode.tools.doctor import print_findings, run_checks

    with open_display() as display:
        print_findings(run_checks(uris, output, address, ray=not no_ray, on_status=display.say), _console())


@app.command(sort_key=3)
def encode(*, job: Annotated[EncodeJob, Parameter(name="*")]) -> None:
    r"""Encode all pairs of a source. After an interruption, run the same command again.

    inpaint-encode encode --images s3://bucket/images --masks s3://bucket/masks \
        --vae stabilityai/sd-vae-ft-mse --output s3://bucket/latents

    Exit codes: 0 done, 1 failed, 2 bad usage, 3 too many rejects, 130/143 stopped.
    """
    secure_local_ray(job.run.address)
    from inpaint_encode.job.pipeline import run_job

    with open_display() as display:
        whole = run_job(job, display)
    this = whole["this_run"]
    _print(
        f"{whole['pairs']:,} pairs: {whole['encoded']:,} encoded, {whole['rejected']:,} rejected; this run "
        f"{this['encoded'] + this['rejected']:,} in {this['seconds']:,.1f} s\n"
        f"{job.output.output}: {whole['files']:,} files, {whole['data_bytes']:,} bytes"
    )


@app.command(sort_key=2)
def plan(*, options: Annotated[PlanOptions, Parameter(name="*")]) -> None:
    r"""Estimate an encode job: pairs, files, bytes, requests, hours.

    inpaint-encode plan --images s3://bucket/images --masks s3://bucket/masks \
        --rate-from s3://bucket/finished --price 12.50

    Lists the source and reads the headers of a random sample of its images. Does not start Ray.
    Accepts the --config file of an encode job. Prints each estimate with its margin of error.
    Exit codes: 0 done, 1 failed, 2 bad usage, 130/143 stopped.
    """
    from inpaint_encode.tools.plan.estimate import estimate
    from inpaint_encode.tools.plan.table import print_estimate

    with open_display() as display:
        job = estimate(options, display.say)
    if options.estimation.as_json:
        print(redacted_json(job.as_dict()))
    else:
        print_estimate(job, _console())


@app.command(sort_key=6, usage="inpaint-encode verify OUTPUT [OPTIONS]")
def verify(options: Annotated[VerifyOptions, Parameter(name="*")]) -> None:
    """Check every file of an output against its list of planned pairs and the settings of the job.

    inpaint-encode verify s3://bucket/latents --sample 100

    With --sample, random rows are also encoded again from the sources and compared.
    Chunks that are not encoded yet count as incomplete, not as damaged.
    --repair --dry-run prints which files --repair would remove or write, and why, and changes nothing.
    Exit codes, also with --repair: 0 complete, 1 could not check, 2 bad usage, 4 incomplete or damaged,
    130/143 stopped.
    """
    secure_local_ray(options.address)
    from inpaint_encode.tools.verify.findings import print_result
    from inpaint_encode.tools.verify.pipeline import verify_output

    with open_display() as display:
        result = verify_output(options, display.say)
    print_result(result, _console())
    result.check_complete()


@app.command(sort_key=4)
def info(output: str, *, as_json: bool = False) -> None:
    """Show the metadata of an output: counts, sizes, settings, versions.

    inpaint-encode info s3://bucket/latents

    Lists the output and reads a few small objects, but no rows. A job may run at the same time.
    Exit codes: 0 done, 1 output cannot be read, 2 bad usage, 130/143 stopped.

    Args:
        output: Folder or prefix that `encode` wrote.
        as_json: Print JSON instead of tables.
    """
    from inpaint_encode.tools.inspect.info import print_info, read_info

    found = read_info(output)
    if as_json:
        print(redacted_json(found))
    else:
        print_info(found, _console())


@app.command(sort_key=5)
def report(output: str, /, *, options: Annotated[ReportOptions, Parameter(name="*")] = ReportOptions()) -> None:
    """Print the report of the last finished run, and write an HTML page about the output.

    inpaint-encode report s3://bucket/latents --html report.html

    The page is one file without external resources. For a large output, the command reads a random
    sample of rows, and the page states their number. For an unfinished output, the page shows the
    rows that exist.
    Exit codes: 0 done, 1 output cannot be read, 2 bad usage, 130/143 stopped.

    Args:
        output: Folder or prefix that `encode` wrote.
        options: Contents and place of the page.
    """
    from inpaint_encode.tools.inspect.report import print_report, write_page
    from inpaint_encode.tools.inspect.summary import read_report

    found = read_report(output)
    if found:
        print_report(found, _console())
    elif not options.html:
        raise JobFailed(
            f"{output}/_report.json does not exist: no run has finished yet, or {output} is not an output of encode; "
            "give --html FILE to see the rows of an unfinished run"
        )
    if options.html:
        with open_display() as display:
            written = write_page(output, options, display.say)
        if not found:
            _print(f"no run of {output} has finished yet, so there is no report to print")
        _print(written)


@app.command(sort_key=7)
def show(output: str, key: str, /, *, options: Annotated[ShowOptions, Parameter(name="*")] = ShowOptions()) -> None:
    """Show one row: print its columns and write its pictures to a file.

    inpaint-encode show s3://bucket/latents a/042 --picture a-042.png

    Exit codes: 0 done, 1 output cannot be read, 2 bad usage or unknown key, 130/143 stopped.

    Args:
        output: Folder or prefix that `encode` wrote.
        key: Key of the row, as in the column key.
        options: Decoding of the latent, and place of the picture.
    """
    from inpaint_encode.tools.inspect.show import print_row, show_row

    with open_display() as display:
        row, notes = show_row(output, key, options, display.say)
    print_row(row, notes, _console())


@app.command(sort_key=8, usage="inpaint-encode export LATENTS --to CHOICE --output URI [OPTIONS]")
def export(latents: str, /, *, options: Annotated[ExportOptions, Parameter(name="*")]) -> None:
    """Export the rows of an output as files for ComfyUI, WebDataset or safetensors, or as large Parquet files.

    inpaint-encode export s3://bucket/latents --to comfyui --output ComfyUI/input
    inpaint-encode export s3://bucket/latents --to parquet --output s3://bucket/large

    After an interruption, or when the output has new rows, run the same command again.
    It exports the missing rows.
    Exit codes: 0 done, 1 failed, 2 bad usage, 130/143 stopped.

    Args:
        latents: Source of the export: folder or prefix that `encode` wrote. It may be unfinished.
        options: Format and place of the files.
    """
    secure_local_ray(options.address)
    from inpaint_encode.tools.export.pipeline import export_output

    with open_display() as display:
        made = export_output(latents, options, display.say)
    _print(
        f"{made.whole.rows:,} rows for {options.to}; this run {made.rows_now:,} in {made.seconds:,.1f} s\n"
        f"{made.uri}: {made.whole.files:,} files, {made.whole.bytes:,} bytes"
    )
    if made.unfinished:
        _print(made.unfinished)
