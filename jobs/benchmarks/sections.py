"""The benchmark's sections, each with its data, on one Ray and one S3 server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.utils.logging import set_verbosity_error

from inpaint_encode.core.compiled import optimise
from inpaint_encode.demo.pairs import upload
from inpaint_encode.demo.s3server import LocalS3
from inpaint_encode.job.cluster import joined

from .compare import contest
from .cpu import CpuMeter
from .data import LARGE, LITTLE, LITTLE_MIXED, MIXED, ONE_SIZE, BenchSet, Pair, pairs_below, write_pairs
from .dilation import growth_section
from .fetch import fetch_section
from .kernel import default_encode, kernel_section, sd_vae
from .our_job import product
from .peers.contestant import Contestant, LoadStandIn, Task
from .peers.loader import LOADER
from .peers.script import SCRIPT
from .peers.template import TEMPLATE
from .reading import Stored, reading_section, write_rows
from .record import Section
from .repeatable import repeatable_section
from .utilisation import FeedPlan, feed_sections
from .writing import writing_section

__all__ = ["QUICK", "WHOLE", "Extent", "sections"]


@dataclass(frozen=True)
class Extent:
    """How much is measured; the sections are the same."""

    full: bool
    few: int
    """Pairs of a contest's smaller run."""
    cost_pairs: int
    peer_pairs: int
    repeats: int
    gpu_images: int = 20_000


WHOLE = Extent(full=True, few=512, cost_pairs=4_096, peer_pairs=1_536, repeats=3)
QUICK = Extent(full=False, few=16, cost_pairs=48, peer_pairs=48, repeats=1)


_ON_RAY = {"feed", "cost", "peers"}


def sections(only: Sequence[str], extent: Extent, folder: Path) -> Iterator[Section]:
    """Measure the sections that are named, in their order, on one Ray and one S3 server, with data below ``folder``."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    set_verbosity_error()  # a cast that is meant needs no warning
    with LocalS3(folder / "s3") as server:
        os.environ.update(server.environment)  # before Ray, whose workers have this process's environment
        measures: dict[str, Callable[[], Iterator[Section]]] = {
            "kernel": lambda: _kernel(extent, device),
            "repeatable": lambda: _repeatable(extent, device),
            "feed": lambda: _feed(extent, device, folder / "feed"),
            "cost": lambda: _cost(extent, folder / "cost", server),
            "peers": lambda: _peers(extent, folder / "peers", server),
            "growth": lambda: iter([growth_section(full=extent.full)]),
            "fetch": lambda: _fetch(extent, folder / "fetch", server),
            "write": lambda: iter([writing_section()]),
            "reading": lambda: _reading(extent, folder / "reading", server),
        }
        with joined("") if _ON_RAY & set(only) else nullcontext():
            for name, measure in measures.items():
                if name in only:
                    yield from measure()


def _kernel(extent: Extent, device: str) -> Iterator[Section]:
    """What a GPU does at 512 and 1024 costs a CPU ten seconds an image, so it is given less."""
    sides, batches = ((256, 512, 1024), (4, 8, 16)) if device == "cuda" else ((128,), (1, 4))
    yield kernel_section(
        lambda vae: default_encode(optimise(vae, deterministic=False, compiled=True)),
        device=device,
        sides=sides if extent.full else (64,),
        batches=batches if extent.full else (1,),
        repeats=extent.repeats,
    )


def _repeatable(extent: Extent, device: str) -> Iterator[Section]:
    side = 512 if device == "cuda" else 128
    yield repeatable_section(device, side if extent.full else 64, repeats=extent.repeats)


def _feed(extent: Extent, device: str, folder: Path) -> Iterator[Section]:
    vae = folder / "vae"
    sd_vae(decoder=True).save_pretrained(vae)
    if device == "cuda":
        plan = FeedPlan(str(vae), device, 8, 256, settle=extent.gpu_images // 2, images=extent.gpu_images)
        single: tuple[BenchSet, ...] = (ONE_SIZE, LARGE)
        mixed = MIXED
    else:
        plan = FeedPlan(str(vae), device, 4, 4, settle=8, images=48 if extent.full else 4, repeats=extent.repeats)
        single, mixed = (LITTLE,), LITTLE_MIXED
    yield from feed_sections(plan, folder, single, mixed)


def _cost(extent: Extent, folder: Path, server: LocalS3) -> Iterator[Section]:
    """Everything but the VAE, with a stand-in for it, from disk and from S3."""
    jobs = [product("the job, tensor masks"), product("the job, packed masks", mask_encoding="packed")]
    for chosen in (ONE_SIZE, MIXED):
        pairs = write_pairs(folder / chosen.name, chosen, extent.cost_pairs)
        yield _contest(f"CPU cost outside the VAE, {chosen.name}", jobs, pairs, pairs, folder, extent, server)
    local = write_pairs(folder / "from-s3", ONE_SIZE, extent.peer_pairs)
    upload(folder / "from-s3", server.uri("cost"))
    remote = pairs_below(server.uri("cost"), len(local))
    title = f"CPU cost outside the VAE, {ONE_SIZE.name}, from S3"
    yield _contest(title, jobs[:1], remote, local, folder, extent, server)


def _peers(extent: Extent, folder: Path, server: LocalS3) -> Iterator[Section]:
    """The job beside other programs for the same pairs, the same stand-in and the same output."""
    everyone = [product("the job"), SCRIPT, LOADER, TEMPLATE]
    for chosen in (ONE_SIZE, MIXED):
        pairs = write_pairs(folder / chosen.name, chosen, extent.peer_pairs)
        yield _contest(f"Peers, {chosen.name}", everyone, pairs, pairs, folder, extent, server)


def _contest(
    title: str,
    contestants: Sequence[Contestant],
    pairs: Sequence[Pair],
    local: Sequence[Pair],
    folder: Path,
    extent: Extent,
    server: LocalS3,
) -> Section:
    task = Task(pairs, LoadStandIn(), folder / "out")
    with CpuMeter(exclude=[server.pid]) as meter:
        return contest(title, contestants, task, local, meter, few=extent.few, repeats=extent.repeats)


def _fetch(extent: Extent, folder: Path, server: LocalS3) -> Iterator[Section]:
    local = write_pairs(folder / "pairs", ONE_SIZE, extent.few)
    upload(folder / "pairs", server.uri("fetch"))
    yield fetch_section(pairs_below(server.uri("fetch"), len(local)), local, extent.repeats)


def _reading(extent: Extent, folder: Path, server: LocalS3) -> Iterator[Section]:
    local = write_rows(folder, extent.few)
    upload(folder, server.uri("reading"))
    yield reading_section("disk", local, extent.repeats)
    yield reading_section("S3", Stored(server.uri("reading"), extent.few), extent.repeats)
