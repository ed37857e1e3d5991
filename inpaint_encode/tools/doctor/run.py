"""All checks in their order, the quick ones first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from .device import devices
from .finding import Finding
from .machine import machine
from .stores import stores

__all__ = ["diagnose"]


def diagnose(
    sources: Sequence[str], output: str, address: str, *, ray: bool, say: Callable[[str], None]
) -> Iterator[Finding]:
    """Check this machine, the stores and, if ``ray`` says so, Ray with its nodes; each finding comes when it is found.

    Args:
        sources: URIs that are to be read.
        output: where is to be written; empty is nowhere, and then nothing is.
        address: of a Ray cluster; empty is what RAY_ADDRESS says, or else a Ray that is started here.
        ray: whether to join or start one.
        say: is told what takes time.
    """
    yield from machine()
    say("importing torch")
    yield from devices()
    yield from stores(sources, output)
    if ray:
        from .nodes import check_nodes

        yield from check_nodes(address, sources, output, say)
