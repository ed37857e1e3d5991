"""The benchmark's sections, each with its data, on one Ray and one S3 server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers.utils.logging import set_verbosity_error

from inpaint_encode.core.compiled import optimize_for_gpu
from inpaint_encode.demo.pairs import upload
from inpaint_encode.demo.s3server import LocalS3
from inpaint_encode.job.cluster import connect_ray

from .compare import compare_section
from .cpu import CpuMeter
from .data import MIXED, MIXED_128, SQUARE_128, SQUARE_512, SQUARE_1024, Pair, pair_uris, write_pairs
from .dilation import dilation_section
from .fake_vae import FakeVae
from .fetch import fetch_section
from .kernel import default_encode, kernel_section, sd_vae
from .our_job import our_job
from .peers.loader import LOADER
from .peers.script import SCRIPT
from .peers.task import Program, Task
from .peers.template import TEMPLATE
from .reading import StoredRows, reading_section, write_rows
from .record import Section
from .repeatable import repeatable_section
from .utilisation import RatePlan, utilisation_sections
from .writing import writing_section

__all__ = ["FULL", "QUICK", "Extent", "measure_sections"]


@dataclass(frozen=True)
class Extent:
    """How many pairs and samples to measure."""

    full: bool
    few: int
    """Pairs of the smaller run of each compared program."""
    cost_pairs: int
    peer_pairs: int
    repeats: int


FULL = Extent(full=True, few=512, cost_pairs=4_096, peer_pairs=1_536, repeats=3)
QUICK = Extent(full=False, few=16, cost_pairs=48, peer_pairs=48, repeats=1)

_GPU_IMAGES = 20_000
_ON_RAY = {"utilisation", "cost", "peers"}


class _Machine(NamedTuple):
    device: str
    server: LocalS3
    folder: Path
    """For the data of one section."""


def measure_sections(only: Sequence[str], extent: Extent, folder: Path) -> Iterator[Section]:
    """Measure the sections named in ``only``, on one Ray and one S3 server, with data in ``folder``."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    set_verbosity_error()  # hides diffusers' warning about casts
    with LocalS3(folder / "s3") as server:
        os.environ.update(server.environment)  # before Ray starts, whose workers inherit the environment
        with connect_ray("") if _ON_RAY & set(only) else nullcontext():
            for name, measure in _MEASURES.items():
                if name in only:
                    yield from measure(extent, _Machine(device, server, folder / name))


def _kernel(extent: Extent, on: _Machine) -> Iterator[Section]:
    """Use small images on a CPU, which takes ten seconds for one of 1024 x 1024."""
    sides, batches = ((256, 512, 1024), (4, 8, 16)) if on.device == "cuda" else ((128,), (1, 4))
    yield kernel_section(
        lambda vae: default_encode(optimize_for_gpu(vae, deterministic=False, compiled=True)),
        device=on.device,
        sides=sides if extent.full else (64,),
        batches=batches if extent.full else (1,),
        repeats=extent.repeats,
    )


def _repeatable(extent: Extent, on: _Machine) -> Iterator[Section]:
    side = 512 if on.device == "cuda" else 128
    yield repeatable_section(on.device, side if extent.full else 64, repeats=extent.repeats)


def _utilisation(extent: Extent, on: _Machine) -> Iterator[Section]:
    vae = str(on.folder / "vae")
    sd_vae(decoder=True).save_pretrained(vae)
    if on.device == "cuda":
        plan = RatePlan(vae, on.device, 8, 256, warm_up=_GPU_IMAGES // 2, images=_GPU_IMAGES)
        yield from utilisation_sections(plan, on.folder, (SQUARE_512, SQUARE_1024), MIXED)
    else:
        plan = RatePlan(vae, on.device, 4, 4, warm_up=8, images=48 if extent.full else 4, repeats=extent.repeats)
        yield from utilisation_sections(plan, on.folder, (SQUARE_128,), MIXED_128)


def _cost(extent: Extent, on: _Machine) -> Iterator[Section]:
    """Measure everything except the VAE, with a fake VAE, from disk and from S3."""
    jobs = [our_job("the job, tensor masks"), our_job("the job, packed masks", mask_encoding="packed")]
    for chosen in (SQUARE_512, MIXED):
        pairs = write_pairs(on.folder / chosen.name, chosen, extent.cost_pairs)
        yield _compare(f"CPU cost outside the VAE, {chosen.name}", jobs, pairs, pairs, extent, on)
    local = write_pairs(on.folder / "from-s3", SQUARE_512, extent.peer_pairs)
    upload(on.folder / "from-s3", on.server.uri("cost"))
    remote = pair_uris(on.server.uri("cost"), len(local))
    yield _compare(f"CPU cost outside the VAE, {SQUARE_512.name}, from S3", jobs[:1], remote, local, extent, on)


def _peers(extent: Extent, on: _Machine) -> Iterator[Section]:
    """Compare the job with other programs, on the same pairs, with the same fake VAE and the same output."""
    programs = [our_job("the job"), SCRIPT, LOADER, TEMPLATE]
    for chosen in (SQUARE_512, MIXED):
        pairs = write_pairs(on.folder / chosen.name, chosen, extent.peer_pairs)
        yield _compare(f"Peers, {chosen.name}", programs, pairs, pairs, extent, on)


def _compare(
    title: str, programs: list[Program], pairs: list[Pair], local: list[Pair], extent: Extent, on: _Machine
) -> Section:
    task = Task(pairs, FakeVae, on.folder / "out")
    with CpuMeter(exclude=[on.server.pid]) as meter:
        return compare_section(title, programs, task, local, meter, few=extent.few, repeats=extent.repeats)


def _dilation(extent: Extent, _on: _Machine) -> Iterator[Section]:
    yield dilation_section(full=extent.full)


def _fetch(extent: Extent, on: _Machine) -> Iterator[Section]:
    local = write_pairs(on.folder, SQUARE_512, extent.few)
    upload(on.folder, on.server.uri("fetch"))
    yield fetch_section(pair_uris(on.server.uri("fetch"), len(local)), local, extent.repeats)


def _write(_extent: Extent, _on: _Machine) -> Iterator[Section]:
    yield writing_section()


def _reading(extent: Extent, on: _Machine) -> Iterator[Section]:
    local = write_rows(on.folder, extent.few)
    upload(on.folder, on.server.uri("reading"))
    yield reading_section("disk", local, extent.repeats)
    yield reading_section("S3", StoredRows(on.server.uri("reading"), extent.few), extent.repeats)


_MEASURES: dict[str, Callable[[Extent, _Machine], Iterator[Section]]] = {
    "kernel": _kernel,
    "repeatable": _repeatable,
    "utilisation": _utilisation,
    "cost": _cost,
    "peers": _peers,
    "dilation": _dilation,
    "fetch": _fetch,
    "write": _write,
    "reading": _reading,
}
