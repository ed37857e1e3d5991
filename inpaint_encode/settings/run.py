"""Where rows go, who does the work, and how a run behaves."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Literal, Self

from cyclopts import Parameter
from pydantic import Field, field_validator, model_validator

from .base import Frozen, measured_in, section

__all__ = ["Batches", "Chunks", "Labels", "Output", "RunOptions", "Workers", "selector"]


@section("The output", 5)
class Chunks(Frozen):
    """In what pieces rows go."""

    chunk_rows: Annotated[int, Field(ge=1, le=100_000), measured_in("PAIRS")] = 256
    """Pairs in one file, the unit of work: fewer lose less when a worker dies, and cost more requests. An image's masks
    stay in one, unless it has more of them than this."""
    chunk_bytes: Annotated[int, Field(ge=1), measured_in("BYTES")] = 64 * 2**20
    """Bytes of image files after which a chunk ends early: a task holds a chunk's pixels, some ten times as much of
    photographs. Flat images take far fewer bytes, and a manifest tells none: then only --chunk-rows is a bound, by 3
    bytes for each pixel of each image, 192 MB for one of 64 megapixels."""


@section("The output", 5)
class Output(Chunks):
    """Where rows go and in what pieces."""

    output: Annotated[str, measured_in("URI")]
    """Folder or prefix of the output: s3://bucket/prefix, file:///path or a plain path. Everything in it that is not
    data begins with "_"."""
    overwrite: bool = False
    """Remove what an earlier job wrote there, and start anew. Leave it out when you start an interrupted job again: it
    goes on from what is done."""


_SELECTOR = r"[\w./-]+=!?(?:in\([\w.-]+(?:, ?[\w.-]+)*\)|[\w.-]+)"
Labels = Annotated[str, Field(pattern=rf"^(?:{_SELECTOR}(?:, ?{_SELECTOR})*)?$")]
"""Conditions on a node's labels, all of which must hold: ``key=value``, ``key=!value``, ``key=in(one,two)``."""


def selector(labels: Labels) -> dict[str, str] | None:
    """Take the conditions apart, by key, as Ray is told them; None if there are none."""
    return dict(one.split("=", 1) for one in re.findall(_SELECTOR, labels)) or None


@section("Who does the work", 6)
class Batches(Frozen):
    """What one worker does at once, and on what."""

    batch_size: Annotated[Literal["auto"] | Annotated[int, Field(ge=1)], measured_in("IMAGES")] = "auto"
    """Most images of one size in one forward pass: more fill a GPU better and need more of its memory. auto is 8, or
    as many as will fit into a GPU's free memory; on a CPU, as many as have half a million pixels."""
    compile: Annotated[bool, Parameter(negative="--no-compile")] = True
    """On a GPU, compile the VAE for batch shapes that come often: faster, equal but for rounding."""
    gpus_per_worker: Annotated[str, Field(pattern=r"^(auto|\d+|0\.\d+)$"), measured_in("GPUS")] = "auto"
    """GPUs of one VAE worker: 0 is the CPU, 0.5 lets two share one, auto is 1 where the cluster has one now. On a
    cluster that starts GPU nodes on demand give a number, and --max-workers."""
    fetch_threads: Annotated[int, Field(ge=1, le=256), measured_in("COUNT")] = 16
    """Downloads under way at once in each fetch task, 1 to 256."""


@section("Who does the work", 6)
class Workers(Batches):
    """How much of the cluster the job asks for."""

    min_workers: Annotated[int, Field(ge=1), measured_in("WORKERS")] = 1
    """VAE workers that the job starts with."""
    max_workers: Annotated[int, Field(ge=0), measured_in("WORKERS", "what is there")] = 0
    """Most VAE workers. A cluster that starts GPU nodes on demand starts as many as they need. What is there, or 0, is
    one for each share of a GPU the cluster has now, or one without GPUs."""
    fetch_cpus: Annotated[float, Field(gt=0), measured_in("CPUS")] = 1.0
    """CPUs that a task takes which fetches and decodes a chunk, of those a node says it has."""
    encode_cpus: Annotated[str, Field(pattern=r"^(auto|\d+|\d+\.\d+)$"), measured_in("CPUS")] = "auto"
    """CPUs that a VAE worker takes: auto is 0 beside a GPU, so that no other task keeps it from its GPU, else 2."""
    write_cpus: Annotated[float, Field(gt=0), measured_in("CPUS")] = 0.75
    """CPUs that a task takes which writes a chunk."""
    encode_on: Annotated[Labels, measured_in("LABELS")] = ""
    """Labels of the nodes for VAE workers, such as ray.io/accelerator-type=in(L4,A10G) or pool=gpu,market=!spot;
    by default every node with what a worker takes."""
    fetch_on: Annotated[Labels, measured_in("LABELS")] = ""
    """Labels of the nodes on which files are fetched, decoded and written; by default every node with free CPUs."""

    @model_validator(mode="after")
    def _order(self) -> Self:
        if self.max_workers and self.max_workers < self.min_workers:
            raise ValueError(
                f"--max-workers {self.max_workers} is below --min-workers {self.min_workers}; raise it or set 0"
            )
        return self


@section("How the run behaves", 7)
class RunOptions(Frozen):
    """Limits and manners of one run; they leave no trace in the rows."""

    max_rejected: Annotated[str, measured_in("COUNT|%")] = "1%"
    """Rejects to accept, such as 100 or 1%; with more the job ends with exit code 3. A count is judged as the
    job goes, a percentage at its end, and before the end only after 1,000 pairs."""
    limit: Annotated[int, Field(ge=0), measured_in("PAIRS", "none")] = 0
    """Stop after this many pairs, at the end of a chunk. The same command without it encodes the rest."""
    retry_rejected: bool = False
    """Try the rejected pairs again; without it a rejection is a decision like any other."""
    refresh: bool = False
    """Encode again the pairs whose image or mask has changed since, by the listing's versions, or whose line in the
    manifest has; every other row stays."""
    drop_vanished: bool = False
    """With --refresh, drop the rows whose image or mask is gone from the source."""
    address: Annotated[str, measured_in("HOST:PORT")] = ""
    """Ray cluster to join; by default the one this process runs in, else one is started on this machine."""

    @field_validator("max_rejected")
    @classmethod
    def _count_or_percentage(cls, value: str) -> str:
        if not re.fullmatch(r"\d+|\d+(\.\d+)?%", value):
            raise ValueError(f"--max-rejected {value!r} is neither a count such as 100 nor a percentage such as 1%")
        return value

    @model_validator(mode="after")
    def _drop_needs_refresh(self) -> Self:
        if self.drop_vanished and not self.refresh:
            raise ValueError("--drop-vanished is a part of --refresh; give both")
        return self

    def allows(self, rejected: int, decided: int, *, finished: bool) -> bool:
        """Whether ``rejected`` of ``decided`` pairs are acceptable.

        A percentage is judged at the end, and before the end only after 1,000 decided pairs.
        """
        if not self.max_rejected.endswith("%"):
            return rejected <= int(self.max_rejected)
        if not finished and decided < 1_000:
            return True
        return rejected * 100 <= Decimal(self.max_rejected[:-1]) * decided
