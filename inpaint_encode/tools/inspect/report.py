"""The page of an output, from reading it to where the file goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from inpaint_encode.errors import UsageError
from inpaint_encode.settings import ReportOptions
from inpaint_encode.stores import storage

from .contents import gather
from .page import render

__all__ = ["Written", "write_page"]


class Written(NamedTuple):
    """A page that was written."""

    uri: str
    size: int
    """In bytes."""


def write_page(output: str, options: ReportOptions, say: Callable[[str], None]) -> Written:
    """Read a sample of an output and write the page.

    Args:
        output: folder or prefix that a job wrote.
        options: what to look at, and where the page goes.
        say: is told, in a line, what is being done.

    Raises:
        UsageError: there is no such output, it has no rows, or no page can be there.
        PermissionError, OSError: by what the store said.
    """
    try:
        uri = storage.normalize_uri(options.html)
    except ValueError as error:
        raise UsageError(f"--html {error}") from None
    page = render(gather(output, options, say)).encode()
    storage.write(uri, page)
    return Written(uri, len(page))
