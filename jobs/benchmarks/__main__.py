"""``python -m jobs.benchmarks``: measure the job and its peers on this machine, and write a record."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter
from rich.console import Console

from inpaint_encode.job.cluster import protect_local_ray

if TYPE_CHECKING:
    from .record import Section

__all__ = ["SECTIONS", "app"]

RECORDS = Path("jobs/benchmarks/records")

Name = Literal["kernel", "repeatable", "feed", "cost", "peers", "growth", "fetch", "write", "reading"]
SECTIONS: tuple[Name, ...] = ("kernel", "repeatable", "feed", "cost", "peers", "growth", "fetch", "write", "reading")


app = App(name="benchmark", help="Measure the job and its peers on this machine, with a GPU if it has one.")


@app.default
def benchmark(
    *,
    only: Annotated[tuple[Name, ...], Parameter(negative=(), consume_multiple=True)] = SECTIONS,
    quick: Annotated[bool, Parameter(negative=())] = False,
    scale: Annotated[bool, Parameter(negative=())] = False,
    records: Path = RECORDS,
) -> None:
    """Make the data, measure the sections, print them and write a dated record.

    Args:
        only: sections to measure, such as --only kernel feed.
        scale: measure how the job grows with pairs, workers and pixels instead, and reckon what many GPUs need.
        quick: a minute's run to see that it works; its figures are too few to be believed.
        records: folder of the record.
    """
    protect_local_ray("")
    from .record import Record

    console = Console(width=140)
    extent = {"extent": "quick" if quick else "whole"}
    record = Record("stand-in, scale" if scale else "SD VAE, random weights", settings=extent)
    with tempfile.TemporaryDirectory() as folder:
        for section in _scaled(Path(folder), quick) if scale else _measured(only, Path(folder), quick):
            record.sections.append(section)
            record.write(records)  # what has been measured stays, whatever comes after
    record.show(console)
    console.print(f"the record is {records / record.file_name}", highlight=False)


def _measured(only: tuple[Name, ...], folder: Path, quick: bool) -> Iterable[Section]:
    from .sections import QUICK, WHOLE, sections

    return sections(only, QUICK if quick else WHOLE, folder)


def _scaled(folder: Path, quick: bool) -> Iterable[Section]:
    from .scale import scale_record

    return scale_record(folder, quick=quick)


if __name__ == "__main__":
    app()
