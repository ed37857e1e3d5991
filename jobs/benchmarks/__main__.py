"""``python -m jobs.benchmarks``: measure the job and its peers on this machine, and write a record."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Literal, get_args

from cyclopts import App, Parameter

from inpaint_encode.job.cluster import secure_local_ray

__all__ = ["SECTIONS", "app"]

Name = Literal["kernel", "repeatable", "utilisation", "cost", "peers", "dilation", "fetch", "write", "reading"]
SECTIONS: tuple[Name, ...] = get_args(Name)

app = App(name="benchmark", help="Measure the job and its peers on this machine, with a GPU if it has one.")


@app.default
def benchmark(
    *,
    only: Annotated[tuple[Name, ...], Parameter(negative=(), consume_multiple=True)] = SECTIONS,
    quick: Annotated[bool, Parameter(negative=())] = False,
    scale: Annotated[bool, Parameter(negative=())] = False,
    records: Path = Path("jobs/benchmarks/records"),
) -> None:
    """Create the data, measure the sections, print them and write a dated record.

    Args:
        only: sections to measure, for example --only kernel utilisation.
        scale: measure how the job scales with pairs, workers and pixels instead, and extrapolate to many GPUs.
        quick: run for about a minute to check that the benchmark works. The figures have too few samples to use.
        records: folder of the record.
    """
    secure_local_ray("")
    from rich.console import Console
    from rich.markdown import Markdown

    from .record import Record
    from .scale import scale_sections
    from .sections import FULL, QUICK, measure_sections

    console = Console(width=140)
    record = Record("fake VAE, scale" if scale else "SD VAE, random weights")
    record.settings = {"extent": "quick" if quick else "full"}
    with tempfile.TemporaryDirectory() as name:
        folder, extent = Path(name), QUICK if quick else FULL
        for section in scale_sections(folder, quick=quick) if scale else measure_sections(only, extent, folder):
            record.sections.append(section)
            record.write(records)  # after each section, so that a failure keeps the earlier ones
    console.print(Markdown(record.markdown()))
    console.print(f"the record is {records / record.file_name}", highlight=False)


if __name__ == "__main__":
    app()
