"""The report page: one HTML file without external scripts, pictures or fonts, from `PageData` and a template."""

from __future__ import annotations

import statistics
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.filesize import decimal

from inpaint_encode.stores.redaction import redacted
from inpaint_encode.tools.inspect.page_data import KINDS, PageData
from inpaint_encode.tools.inspect.pictures import WHITE_AT

from .sections import build_sections, count_files, duration

__all__ = ["render"]


def render(data: PageData) -> str:
    """Return the page as HTML; logins and query strings, which may be signatures, are removed from URIs."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_redact,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"date": _date, "duration": duration, "files": count_files, "size": decimal}
    environment.filters |= {"thousands": "{:,}".format, "median": statistics.median}
    page: str = environment.get_template("page.html.j2").render(
        data=data,
        white_at=WHITE_AT,
        kinds=KINDS,
        cards=data.gallery.cards,
        metadata=data.output.metadata,
        report=data.output.report,
        rejected=sum(data.rejected.values()),
        sections=build_sections(data),
    )
    return page


def _redact(value: Any) -> Any:
    is_markup = hasattr(value, "__html__")  # the output of a macro, whose values were redacted before
    return redacted(value) if isinstance(value, str) and not is_markup else value


def _date(when: datetime | str) -> str:
    moment = datetime.fromisoformat(when) if isinstance(when, str) else when
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"
