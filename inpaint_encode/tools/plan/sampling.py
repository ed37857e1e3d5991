"""A random sample of images: their sizes from headers, and estimates with 95% confidence intervals.

The sample is drawn without replacement. No pixel is decoded.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from inpaint_encode.core.decode import PairDecoder, upright_size
from inpaint_encode.errors import JobFailed, PairRejected
from inpaint_encode.sources import PairReader
from inpaint_encode.stores import storage

START = 2**16
"""Bytes to read of an image; the whole file is read only if its header is longer."""

_MAYBE_INCOMPLETE = {"image.not_an_image", "image.truncated", "image.corrupt"}
"""Errors that an incomplete header may cause."""

_Z = 1.959964
"""Standard errors in half of a 95% interval of the normal distribution."""


class Reservoir:
    """A random sample of rows whose number is not known before: reservoir sampling, Algorithm L (Li, 1994).

    All sets of ``size`` rows are equally likely. The sample depends on the seed and the order of the rows, but not on
    the tables in which they are added. Only the sampled rows are in memory.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.population = 0
        """Rows that were added."""
        self._size, self._random = size, random.Random(seed)  # noqa: S311 - not a secret
        self._sample: list[tuple[int, dict[str, Any]]] = []
        self._log_w = 0.0
        """If each row has a random number in (0, 1) and the smallest are sampled: logarithm of the largest of them."""
        self._next = size - 1
        """Position of the next row that replaces one of the sample."""
        self._skip()

    def add(self, rows: pa.Table) -> None:
        """Add rows; some of them replace rows of the sample."""
        start, end = self.population, self.population + rows.num_rows
        positions = list(range(start, min(end, self._size)))
        slots = positions.copy()
        while self._next < end:
            positions.append(self._next)
            slots.append(self._random.randrange(self._size))
            self._skip()
        drawn = rows.take(pa.array([position - start for position in positions], pa.int64())).to_pylist()
        self._sample += [(0, {})] * (min(end, self._size) - len(self._sample))
        for slot, position, row in zip(slots, positions, drawn, strict=True):
            self._sample[slot] = position, row
        self.population = end

    def _skip(self) -> None:
        self._log_w -= self._random.expovariate(1) / self._size
        self._next += 1 + int(-self._random.expovariate(1) / math.log(-math.expm1(self._log_w)))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The sample, in the order in which the rows were added; all rows if there are at most ``size``."""
        return [row for _, row in sorted(self._sample, key=lambda drawn: drawn[0])]


class Header(NamedTuple):
    """Result of reading one image's header."""

    size: tuple[int, int] | None
    """Height and width after the crop, EXIF orientation applied; None if the image will be rejected."""
    error: str
    """Name of the error that the image will be rejected with, or empty."""
    bytes_read: int


def read_header(pair: Mapping[str, Any], reader: PairReader, decoder: PairDecoder) -> Header:
    """Read the header of a pair's image, and compute the image's size after resizing and cropping.

    Args:
        pair: a row of `schema.PAIRS`.
        reader: its ``max_bytes`` limits the file's size.
        decoder: computes the size as in the job.

    Raises:
        JobFailed: the store denies or fails the read.
    """
    read = 0
    try:
        storage.check_size(pair.get("image_bytes") or 0, reader.max_bytes)
        start = reader.read_start(pair, START)
        read = len(start)
        try:
            size = upright_size(start, decoder.max_pixels)
        except PairRejected as rejection:
            if rejection.error not in _MAYBE_INCOMPLETE or read < START:
                raise
            whole = reader.read(pair["image_uri"], pair.get("image_version") or "").data
            read += len(whole)
            size = upright_size(whole, decoder.max_pixels)
        crop = decoder.fit(*size).crop
    except FileNotFoundError:
        return Header(None, "fetch.not_found", 0)
    except storage.TooLarge:
        return Header(None, "fetch.too_large", read)
    except PairRejected as rejection:
        return Header(None, rejection.error, read)
    except OSError as error:
        reason = error.strerror or error
        raise JobFailed(f"{pair['image_uri']} cannot be read: {reason}; check the credentials") from error
    return Header((crop.height, crop.width), "", read)


@dataclass(frozen=True)
class Estimate:
    """An estimated number and its sampling error."""

    value: float
    half_width: float | None
    """Half the width of the 95% interval. 0 if the sample is the whole population; None if the sample is too small."""

    def scaled(self, factor: float) -> Estimate:
        """Return the estimate of ``factor`` times the number."""
        return Estimate(self.value * factor, None if self.half_width is None else self.half_width * factor)

    def format(self, text_of: Callable[[float], str]) -> str:
        """Return the number and its error in the format of ``text_of``; an error of 0 is left out."""
        error = "?" if self.half_width is None else self.half_width and text_of(self.half_width)
        return text_of(self.value) + (f" ± {error}" if error else "")


def share(count: int, sampled: int, population: int) -> Estimate:
    """Estimate the share of a population that has a property, if ``count`` of ``sampled`` members have it.

    The error is the wider side of Wilson's interval, which is not 0 if no member or every member has the property.
    """
    p, z2 = count / sampled, _Z * _Z / sampled
    centre = (p + z2 / 2) / (1 + z2)
    half = _Z * math.sqrt(p * (1 - p) / sampled + z2 / (4 * sampled)) / (1 + z2)
    return Estimate(p, (half + abs(centre - p)) * _finite_population_correction(sampled, population))


def mean(values: Sequence[float], sampled: int, population: int) -> Estimate:
    """Estimate the mean of a population; ``values`` may be fewer than ``sampled`` if some members have no value."""
    value = statistics.fmean(values) if values else 0.0
    if sampled == population:
        return Estimate(value, 0.0)
    if len(values) < 2:
        return Estimate(value, None)
    standard_error = statistics.stdev(values) / math.sqrt(len(values))  # exactly 0 for equal values, unlike numpy's
    return Estimate(value, _Z * standard_error * _finite_population_correction(sampled, population))


def total(values: Sequence[float], population: int) -> Estimate:
    """Estimate the sum over a population from the values of all sampled members."""
    return mean(values, len(values), population).scaled(population)


def _finite_population_correction(sampled: int, population: int) -> float:
    """Factor of a standard error for a sample without replacement; 0 if the sample is the population."""
    return math.sqrt(1 - sampled / population)
