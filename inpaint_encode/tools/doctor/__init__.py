"""Checks before a job: the machine, its devices, the stores, Ray with its nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from .findings import Finding, print_findings
from .machine import check_devices, check_machine
from .stores import check_stores

__all__ = ["print_findings", "run_checks"]


def run_checks(
    sources: Sequence[str], output: str, address: str, *, ray: bool, on_status: Callable[[str], None]
) -> Iterator[Finding]:
    """Yield the finding of each check as it completes, fast checks first.

    Args:
        sources: URIs that a job would read.
        output: URI that a job would write; empty for none.
        address: Ray cluster to join; empty for RAY_ADDRESS, or without it a Ray that is started here.
        ray: check Ray and its nodes, too.
        on_status: called before each slow step, with its description.
    """
    yield from check_machine()
    on_status("importing torch")
    yield from check_devices()
    yield from check_stores(sources, output)
    if ray:
        from .nodes import check_nodes

        yield from check_nodes(address, sources, output, on_status)
