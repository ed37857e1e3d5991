"""A forecast as a table on a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from .numbers import Figure, share
from .run import Calibration, Forecast

__all__ = ["show"]

_SIZES = 8
"""Sizes that have a line of their own."""

_Line = tuple[str, str, str]
"""What, how much, and what it means."""


def show(forecast: Forecast, console: Console) -> None:
    """Print the forecast, what is certain first; every estimate has its error beside it."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    for section in (_counts(forecast), _images(forecast), _output(forecast), _pace(forecast.calibration)):
        for name, figure, note in section:
            table.add_row(name, escape(figure), escape(note))
    console.print(table, highlight=False)
    console.print(_about_errors(forecast), style="dim", highlight=False)


def _counts(forecast: Forecast) -> Iterator[_Line]:
    extra = f"{forecast.unpaired_images:,} images and {forecast.unpaired_masks:,} masks are unpaired, "
    yield "pairs", f"{forecast.pairs:,}", f"{extra}{forecast.ignored_files:,} files ignored"
    yield "output files", f"{forecast.chunks:,}", "chunks, the units of work"
    if forecast.source_image_bytes is None or forecast.source_mask_bytes is None:
        yield "to fetch", "not listed", "a manifest does not tell the sizes of files"
    else:
        masks = decimal(forecast.source_mask_bytes)
        yield "to fetch", decimal(forecast.source_image_bytes), f"of images, and {masks} of masks"
    requests = forecast.requests
    also = f"GET, {requests.put:,} PUT, {requests.list:,} LIST; retries, rejects, receipts and the lease on top"
    yield "requests", f"{requests.get:,}", also


def _images(forecast: Forecast) -> Iterator[_Line]:
    how_many = "all" if forecast.is_whole else f"{forecast.sampled:,}"
    yield "headers read", how_many, f"{decimal(forecast.header_bytes)} of image files; no pixel was decoded"
    found = ", ".join(f"{one.images:,} {one.error}" for one in forecast.rejects)
    yield "rejects", _percent(forecast.rejected), f"by the images' headers: {found or 'none'}"
    mean = forecast.megapixels
    error = "" if forecast.is_whole else ", ± its standard error"
    yield "mean size", _plus_minus(mean.value, mean.standard_error), f"megapixels after the crop{error}"
    for size in forecast.sizes[:_SIZES]:
        yield f"  {size.height} x {size.width}", _percent(size.share), "height x width after the crop"
    if rest := forecast.sizes[_SIZES:]:
        figure = share(sum(size.images for size in rest), forecast.sampled, forecast.pairs)
        yield "  other sizes", _percent(figure), f"{len(rest):,} of them in the sample"


def _output(forecast: Forecast) -> Iterator[_Line]:
    yield "forward passes", f"{forecast.passes.estimate:,.0f}", _about_passes(forecast)
    latents = forecast.latents
    source = "assumed for want of --vae" if latents.assumed else "as the VAE says"
    kind = f"{latents.channels} channels of {latents.dtype} at 1/{latents.ratio} of a side, {source}"
    yield "latents", _bytes(forecast.latent_bytes), f"uncompressed; {kind}"
    if forecast.calibration is None:
        yield "masks", _bytes(forecast.mask_bytes), "uncompressed; assumed at one bit a pixel"


def _about_passes(forecast: Forecast) -> str:
    kind = f"of up to {forecast.batch_size} of one size in a chunk"
    images = forecast.pairs * (1 - forecast.rejected.value)
    full = f"{images / (forecast.passes.estimate * forecast.batch_size or 1):.0%} full"
    if forecast.passes.exact:
        return f"{kind}, {full}"
    also = "; more if sizes are many: the sample is less than a chunk" if forecast.passes.sparse else ""
    return f"{kind}, {full}, if sizes come in no order; {forecast.passes.least:,} if sorted by size{also}"


def _pace(calibration: Calibration | None) -> Iterator[_Line]:
    if calibration is None:
        return
    yield "written latents", _bytes(calibration.latent_bytes), "as Parquet files hold them, measured in the trial"
    yield "written masks", _bytes(calibration.mask_bytes), "as Parquet files hold them, measured in the trial"
    trial = f"{calibration.images:,} images in {calibration.batches:,} batches on {calibration.device}"
    yield "images a second", _figure(calibration.images_per_second), trial
    device, core = calibration.megapixels_per_second, calibration.decode_megapixels_per_second
    fetched = _figure(calibration.fetch_megapixels_per_second)
    beside = f"{_figure(core)} decoded on a core, {fetched} fetched by a task"
    yield "megapixels a second", _figure(device), f"encoded; {beside}"
    if calibration.rejected:
        counts = ", ".join(f"{count:,} {error}" for error, count in calibration.rejected.items())
        yield "rejects on trial", f"{sum(calibration.rejected.values()):,}", counts
    yield (
        "device hours",
        _figure(calibration.hours),
        "of this machine's device, for all pairs, if it never waits",
    )
    if calibration.price:
        yield "price", _figure(calibration.price), "of these hours, by --price"


def _about_errors(forecast: Forecast) -> str:
    kinds = [] if forecast.is_whole else ["sampling"]
    if forecast.calibration:
        kinds.append("the spread between batches")
    if not kinds:
        return "The headers of all images were read: no figure has a sampling error."
    return f"± is half of a 95% interval, by {' and '.join(kinds)}; headers do not tell what is wrong behind them."


def _percent(figure: Figure) -> str:
    return f"{figure.value:.1%}" + (f" ± {figure.half_width:.1%}" if figure.half_width else "")


def _bytes(figure: Figure) -> str:
    return decimal(round(figure.value)) + _error(figure.half_width, lambda error: decimal(round(error)))


def _figure(figure: Figure) -> str:
    return _plus_minus(figure.value, figure.half_width)


def _plus_minus(value: float, error: float) -> str:
    """Both with as many decimals as leave the error two digits, or the value three where there is no error."""
    exact = math.isnan(error) or not error
    least = value / 10 if exact else error
    decimals = max(0, 1 - math.floor(math.log10(least))) if least else 1
    return f"{value:,.{decimals}f}" + _error(error, lambda known: f"{known:,.{decimals}f}")


def _error(error: float, words: Callable[[float], str]) -> str:
    if math.isnan(error):
        return " ± ?"
    return f" ± {words(error)}" if error else ""
