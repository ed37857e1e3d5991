"""``python -m inpaint_encode.demo``: run a job on a bucket and show its output, on this machine only.

Everything is real: an S3 server on loopback, Ray, the job itself, and a small trained VAE.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from inpaint_encode.cli import INTERRUPTED, stop_on_signals
from inpaint_encode.cli import main as inpaint_encode
from inpaint_encode.job.cluster import connect_ray, secure_local_ray
from inpaint_encode.reader import Output
from inpaint_encode.settings import LatentDecoding
from inpaint_encode.tools.inspect.contact_sheet import contact_sheet
from inpaint_encode.tools.inspect.row_inspector import RowInspector

from . import VAE
from .pairs import upload, write_demo_pairs
from .s3server import LocalS3

SHOWN = 7
"""Rows on the contact sheet."""

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
        sys.exit(INTERRUPTED)


def _demonstrate(folder: Path, s3: LocalS3) -> None:
    pairs = write_demo_pairs(folder / "source")
    count = upload(folder / "source", s3.uri())
    console.print(
        f"An S3 server runs at {s3.endpoint}; {count} objects are in s3://{s3.bucket}, {len(pairs.pairs)} pairs among "
        f"them, one of which is broken ({pairs.broken}), an image without a mask, a mask without an image, and a "
        "caption\n"
    )
    with connect_ray(""):
        arguments = ["--images", s3.uri("images"), "--masks", s3.uri("masks"), "--vae", str(VAE)]
        arguments += ["--output", s3.uri("latents"), "--chunk-rows", "8", "--max-rejected", "1"]
        console.print(f"[bold]$ inpaint-encode encode {' '.join(arguments)}", soft_wrap=True, highlight=False)
        inpaint_encode(["encode", *arguments])
        rows = list(_rows_by_ray(s3.uri("latents")))
    _print_rows(rows, _rejects_by_pyarrow(s3.uri("latents")))
    sheet, page, copy = folder / "contact-sheet.png", folder / "report.html", folder / "latents"
    inspector = RowInspector.open(Output.open(s3.uri("latents")), LatentDecoding(), lambda _: None)
    shown = [rows[index] for index in np.linspace(0, len(rows) - 1, SHOWN).round().astype(int)]
    contact_sheet([inspector.inspect(row).pixels for row in shown]).save(sheet)
    arguments = [s3.uri("latents"), "--html", str(page)]
    console.print(f"\n[bold]$ inpaint-encode report {' '.join(arguments)}", soft_wrap=True, highlight=False)
    inpaint_encode(["report", *arguments])
    _copy(s3.uri("latents"), copy)
    console.print(f"\nThe output is in [bold]{copy}[/], a picture of it is [bold]{sheet}[/]", soft_wrap=True)
    console.print(f"The page [bold]{page}[/] tells of it; open it in a browser", soft_wrap=True)


def _rows_by_ray(output: str) -> Iterator[dict[str, Any]]:
    """Read the output with Ray: tensors are arrays of the right shape and type."""
    import ray.data

    yield from ray.data.read_parquet(output, file_extensions=["parquet"]).sort("key").iter_rows()


def _rejects_by_pyarrow(output: str) -> list[dict[str, Any]]:
    """Read the rejects with pyarrow."""
    import pyarrow.parquet as pq
    import s3fs

    path = output.removeprefix("s3://")
    table = pq.read_table(path, filesystem=s3fs.S3FileSystem(), columns=["key", "samples"])
    console.print(f"\npyarrow reads {table.num_rows} rows from {output}; Ray reads the same:")
    rejected: list[dict[str, Any]] = pq.read_table(f"{path}/_rejected", filesystem=s3fs.S3FileSystem()).to_pylist()
    return rejected


def _print_rows(rows: list[dict[str, Any]], rejected: list[dict[str, Any]]) -> None:
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
    for row in rejected:
        console.print(f"[red]rejected[/] {row['key']}: {row['error']}: {row['message']}", soft_wrap=True)


def _copy(output: str, folder: Path) -> None:
    """Download the output, since the server stops with the demonstration."""
    import s3fs

    s3fs.S3FileSystem().get(f"{output.removeprefix('s3://')}/", f"{folder}/", recursive=True)


if __name__ == "__main__":
    main()
