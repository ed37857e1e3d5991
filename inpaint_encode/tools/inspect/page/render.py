"""One HTML file that tells of an output: no script, picture or type in it comes from elsewhere."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from inpaint_encode.stores.redaction import redacted
from inpaint_encode.tools.inspect.contents import Contents
from inpaint_encode.tools.inspect.pictures import WHITE_AT

from . import output, overview, run

__all__ = ["render"]


def render(contents: Contents) -> str:
    """Return the page; URIs in it have neither logins nor queries, which may be signatures."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_without_secrets,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["date"] = _date
    page: str = environment.get_template("page.html.j2").render(
        contents=contents,
        white_at=WHITE_AT,
        metadata=contents.output.metadata,
        report=contents.output.report,
        tiles=overview.tiles(contents),
        warnings=overview.warnings(contents),
        pictures=overview.pictures(contents),
        masks=output.masks(contents),
        latents=output.latents(contents),
        rejects=output.rejects(contents),
        pace=run.pace(contents),
        settings=run.settings(contents),
    )
    return page


def _without_secrets(value: Any) -> Any:
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return redacted(value)


def _date(when: datetime | str) -> str:
    moment = datetime.fromisoformat(when) if isinstance(when, str) else when
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"
