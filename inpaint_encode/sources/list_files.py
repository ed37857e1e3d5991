"""The interface of one file of a list of pairs. `parquet_lists` and `text_lists` implement it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import pyarrow as pa

from inpaint_encode.errors import UsageError
from inpaint_encode.stores.ranged_file import RangedFile

from . import pairs
from .text_checks import TextError

SMALL_BYTES = 2**23
"""Size up to which a file without images is read in one request, and kept in memory."""


class Lines(NamedTuple):
    """Consecutive lines of a file."""

    table: pa.Table
    """The columns of `ListFile.schema`."""
    image_bytes: int = 0
    """Mean size of the embedded images; 0 if the lines have URIs."""


class ListFile(ABC):
    """One file of a list, opened: its columns are known, its lines are not read yet."""

    schema: pa.Schema
    """The columns of the lines; of embedded images, the URIs."""
    embedded: tuple[str, str] = ("", "")
    """Names of the columns with embedded images and masks; empty if there is no such column."""
    refused: Mapping[str, str] = {}
    """Columns that are left out because of their extension types, see `inpaint_encode.parquet_file.ParquetFile`."""
    may_have_nul = True
    """Whether a string may have a NUL character."""
    row_groups = image_bytes = mask_bytes = 0
    """Row groups with embedded images that were read, and the compressed sizes of their images and masks."""

    def __init__(self, uri: str, file: RangedFile) -> None:
        self.uri, self.version = uri, file.version

    @abstractmethod
    def lines(self, start: int) -> Iterator[Lines]:
        """Yield the lines from number ``start`` on, in pieces of bounded size.

        Raises:
            UsageError: a quotation mark is not closed, or a row group is too large.
            ValueError, pa.ArrowException: the file is damaged, or a value cannot be read without loss.
            OSError: the file cannot be read, or has changed.
        """


@contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Raise UsageError for the errors of a file that cannot be read, or is not valid."""
    try:
        with pairs.translate_read_errors(uri):
            yield
    except TextError as error:
        raise UsageError(f"--pairs {uri} line {error.line:,}: {error.sentence}") from error
    except (pa.ArrowException, ValueError) as error:
        raise UsageError(f"--pairs {uri} is not valid {uri.rpartition('.')[2]}; correct it ({error})") from error
