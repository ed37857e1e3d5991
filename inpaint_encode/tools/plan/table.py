"""Prints a `JobEstimate` as a table."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from inpaint_encode.core.geometry import format_size
from inpaint_encode.schema import DUPLICATE_KEY

from .estimate import JobEstimate
from .sampling import Estimate, share

_MAX_SIZES = 8
"""Sizes with a line of their own."""

_percent = "{:.1%}".format


def print_estimate(job: JobEstimate, console: Console) -> None:
    """Print the table, a warning if the rate may not apply, and what ± means."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    for name, number, note in _lines(job):
        table.add_row(name, escape(number), escape(note))
    console.print(table, highlight=False)
    if job.rate and job.rate.differs:
        names = ", ".join("VAE" if name == "config_sha256" else name for name in job.rate.differs)
        warning = f"the settings differ from those of {escape(job.rate.output)} ({names}); its rate may not apply"
        console.print(f"[yellow]warning:[/] {warning}", highlight=False, soft_wrap=True)
    errors = "± is the half-width of the 95% confidence interval. Damage after a file's header is not detected."
    exact = "The headers of all images were read, so no number has a sampling error."
    console.print(exact if job.all_sampled else errors, style="dim", highlight=False)


def _lines(job: JobEstimate) -> Iterator[tuple[str, str, str]]:
    """Yield the name, the number and the explanation of each line."""
    unpaired = f"{job.unpaired_images:,} images and {job.unpaired_masks:,} masks are unpaired"
    yield "pairs", f"{job.pairs:,}", f"{unpaired}, {job.ignored_files:,} files ignored"
    if job.repeated_lines:
        yield "repeated lines", f"{job.repeated_lines:,}", "not counted as pairs: an earlier line has the same contents"
    yield "output files", f"{job.chunks:,}", "one per chunk, the unit of work"
    if job.source_image_bytes is None or job.source_mask_bytes is None:
        yield "to fetch", "unknown", "a list of pairs has no file sizes"
    else:
        yield "to fetch", decimal(job.source_image_bytes), f"of images, and {decimal(job.source_mask_bytes)} of masks"
    put, listed = job.requests.put, job.requests.list
    note = f"GET, {put:,} PUT, {listed:,} LIST; not counting retries and bookkeeping files"
    yield "requests", f"{job.requests.get:,}", note
    sampled = "all" if job.all_sampled else f"{job.sampled:,}"
    yield "headers read", sampled, f"{decimal(job.header_bytes)} of image files; no pixel was decoded"
    errors = ", ".join(f"{one.images:,} {one.error}" for one in job.rejects if one.error != DUPLICATE_KEY)
    duplicates = f"; {job.duplicate_keys:,} {DUPLICATE_KEY} in the whole source" if job.duplicate_keys else ""
    yield "rejects", job.rejected.format(_percent), f"detected from headers: {errors or 'none'}{duplicates}"
    yield "mean size", _plus_minus(job.megapixels), "megapixels after the crop"
    for size in job.sizes[:_MAX_SIZES]:
        name = f"  {format_size(size.height, size.width)}"
        yield name, size.share.format(_percent), "width x height after the crop"
    if others := job.sizes[_MAX_SIZES:]:
        readable = job.pairs - job.duplicate_keys
        other_share = share(sum(size.images for size in others), job.sampled, readable).scaled(readable / job.pairs)
        yield "  other sizes", other_share.format(_percent), f"{len(others):,} of them in the sample"
    latents = job.latents
    source = "assumed without --vae" if latents.assumed else "from the VAE"
    shape = f"{latents.channels} channels of {latents.dtype} at 1/{latents.ratio} of the width and height"
    yield "latents", job.latent_bytes.format(_bytes), f"uncompressed; {shape}, {source}"
    yield "masks", job.mask_bytes.format(_bytes), "uncompressed, at one bit per pixel"
    if (rate := job.rate) is None:
        return
    span = "after the first chunk" if rate.startup_excluded else "since the start of the run"
    note = f"{rate.pairs:,} pairs in {rate.seconds:,.1f} s {span}, in the last run of {rate.output}"
    yield "pairs per second", _significant(rate.pairs_per_second), note
    yield "hours", _significant(rate.hours), f"at this rate; assumes {rate.assumes}"
    if rate.cost is not None:
        yield "cost", _significant(rate.cost), "hours x --price, the cost of the whole cluster per hour"


def _bytes(number: float) -> str:
    return decimal(round(number))


def _plus_minus(estimate: Estimate) -> str:
    """Format with two digits of the error, or three digits of the value if the error is 0 or unknown."""
    if not estimate.half_width:
        return estimate.format(_significant)
    decimals = max(0, 1 - math.floor(math.log10(estimate.half_width)))
    return estimate.format(lambda number: f"{number:,.{decimals}f}")


def _significant(number: float) -> str:
    decimals = max(0, 2 - math.floor(math.log10(number))) if number else 1
    return f"{number:,.{decimals}f}"
