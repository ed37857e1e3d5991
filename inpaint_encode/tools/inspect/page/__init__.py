"""The report page, one HTML file: `sections` turn `PageData` into tables and charts, which a template lays out."""

from .render import render

__all__ = ["render"]
