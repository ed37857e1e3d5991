"""The page: one HTML file, of `parts` that `overview`, `output` and `run` make, laid out by a template."""

from .render import render

__all__ = ["render"]
