"""``python -m inpaint_encode.demo``: run a job on a bucket and show its output, on this machine only.

Everything is real: an S3 server on loopback, Ray, the job itself, and a small trained VAE.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from inpaint_encode.cli import end_interrupted, stop_on_signals
from inpaint_encode.cli import main as inpaint_encode
from inpaint_encode.job.cluster import connect_ray, secure_local_ray
from inpaint_encode.reader import Output
from inpaint_encode.settings import LatentDecoding, SourceReading
from inpaint_encode.tools.inspect.pictures import contact_sheet
from inpaint_encode.tools.inspect.row_inspector import RowInspector

from . import VAE
from .pairs import upload, write_demo_pairs
from .s3server import LocalS3

console = Console()


def main() -> None:
    """Run the demonstration in ``.demo`` below the current folder, which is deleted first."""
    folder = Path(".demo")
    shutil.rmtree(folder, ignore_errors=True)
    secure_local_ray("")
    stop_on_signals()
    try:
        with LocalS3(folder) as s3:
            os.environ.update(s3.environment)
            _demonstrate(folder, s3)
    except KeyboardInterrupt:
        sys.exit(end_interrupted())


def _demonstrate(folder: Path, s3: LocalS3) -> None:
    import pyarrow.parquet as pq
    import ray.data
    from s3fs import S3FileSystem

    pairs = write_demo_pairs(folder / "source")
    count = upload(folder / "source", s3.uri())
    console.print(
        f"An S3 server runs at {s3.endpoint}; {count} objects are in s3://{s3.bucket}, {len(pairs.pairs)} pairs among "
        f"them, one of which is broken ({pairs.broken}), an image without a mask, a mask without an image, and a "
        "caption\n"
    )
    output = s3.uri("latents")
    with connect_ray(""):
        sources = ["--images", s3.uri("images"), "--masks", s3.uri("masks"), "--vae", str(VAE)]
        _run("encode", *sources, "--output", output, "--chunk-rows", "8", "--max-rejected", "1")
        dataset = ray.data.read_parquet(output, file_extensions=["parquet"])  # noqa: TID251 # the demo wrote these files
        rows = list(dataset.sort("key").iter_rows())
    path, store = output.removeprefix("s3://"), S3FileSystem()
    table = pq.read_table(path, filesystem=store, columns=["key", "samples"])  # noqa: TID251
    console.print(f"\npyarrow reads {table.num_rows} rows from {output}; Ray reads the same:")
    _print_rows(rows)
    for reject in pq.read_table(f"{path}/_rejected", filesystem=store).to_pylist():  # noqa: TID251
        console.print(f"[red]rejected[/] {reject['key']}: {reject['error']}: {reject['message']}", soft_wrap=True)
    inspector = RowInspector(Output.open(output), LatentDecoding(), SourceReading(), lambda _: None)
    shown = [inspector.inspect(rows[index]) for index in np.linspace(0, len(rows) - 1, 7).round().astype(int)]
    sheet, page, copy = folder / "contact-sheet.png", folder / "report.html", folder / "latents"
    contact_sheet(shown).save(sheet)
    console.print()
    _run("report", output, "--html", str(page))
    store.get(f"{path}/", f"{copy}/", recursive=True)  # the server stops with the demonstration
    console.print(f"\nThe output is in [bold]{copy}[/], a picture of it is [bold]{sheet}[/]", soft_wrap=True)
    console.print(f"The page [bold]{page}[/] tells of it; open it in a browser", soft_wrap=True)


def _run(*arguments: str) -> None:
    """Print and run a command."""
    console.print(f"[bold]$ inpaint-encode {' '.join(arguments)}", soft_wrap=True, highlight=False)
    inpaint_encode(list(arguments))


def _print_rows(rows: list[dict[str, Any]]) -> None:
    types = f"samples are {rows[0]['samples'].dtype}, masks {rows[0]['noise_mask'].dtype}"
    names = ("key", "image", "from", "samples", "noise_mask", "grown")
    table = Table(*(Column(name, no_wrap=True) for name in names), title=types)
    for row in rows:
        table.add_row(
            row["key"],
            f"{row['source_height']}x{row['source_width']}",
            f"{row['crop_top']}, {row['crop_left']}",
            "x".join(map(str, row["samples"].shape)),
            "x".join(map(str, row["noise_mask"].shape)),
            f"{row['mask_coverage']:.1%}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
