"""Checks of Ray, and by Ray of every node: a task on each, and another that is given a GPU where the node has one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.filesize import decimal

from inpaint_encode.errors import JobFailed
from inpaint_encode.job.cluster import joined

from .device import devices
from .finding import Finding, ok, problem, warning
from .machine import installed, machine
from .stores import stores

__all__ = ["ANSWER_S", "check_nodes"]

ANSWER_S = 60.0
"""How long nodes have to answer: their first worker imports torch, and a GPU may be in a job's hands."""

_COMPARED = ("inpaint-encode", "torch", "diffusers", "pyarrow", "pillow", "numpy")
"""Packages that rows depend on; Ray itself and Python are compared by Ray."""


class _Answer(NamedTuple):
    """What a worker found on its node."""

    findings: list[Finding]
    versions: dict[str, str]


def check_nodes(address: str, sources: Sequence[str], output: str, say: Callable[[str], None]) -> Iterator[Finding]:
    """Join the cluster, or start a Ray of our own, and have every node checked.

    Args:
        address: of the cluster; empty is what RAY_ADDRESS says, or else a Ray of our own.
        sources: URIs that each node must be able to read.
        output: URI that each must be able to write; empty is none.
        say: is told what takes time.
    """
    cluster = address or os.environ.get("RAY_ADDRESS", "")
    say(f"joining the Ray cluster at {cluster}" if cluster else "starting Ray, which takes some ten seconds")
    begun = time.monotonic()
    try:
        with joined(address):
            yield _about_cluster(time.monotonic() - begun)
            say("asking the nodes")
            yield from _about_nodes(sources, output, own=not cluster)
    except JobFailed as error:
        there = "`ray status` on its head says whether it is up; a firewall may be between"
        yield problem("Ray", str(error), there if cluster else "see the logs in /tmp/ray/session_latest/logs")


def _about_cluster(seconds: float) -> Finding:
    there, nodes = ray.cluster_resources(), len(_alive())
    store = decimal(int(there.get("object_store_memory", 0)))
    found = f"{nodes} {'node' if nodes == 1 else 'nodes'}, {there.get('CPU', 0):g} CPUs, {there.get('GPU', 0):g} GPUs, "
    return ok("Ray", f"{found}{store} of object store; Ray {ray.__version__}, there in {seconds:.0f} s")


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


class _Asked(NamedTuple):
    """A task that is under way on a node."""

    node: str
    task: str
    answer: Any


def _about_nodes(sources: Sequence[str], output: str, *, own: bool) -> Iterator[Finding]:
    """Ask all nodes at once, and tell them one after the other."""
    asked = [one for node in _alive() for one in _ask(node, sources, output, own=own)]
    answers = [one.answer for one in asked]
    done, _ = ray.wait(answers, num_returns=len(answers), timeout=ANSWER_S)
    for one in asked:
        if one.answer in done:
            yield from _answered(one)
        else:
            ray.cancel(one.answer, force=True)
            yield _silent(one)


def _ask(node: Mapping[str, Any], sources: Sequence[str], output: str, *, own: bool) -> Iterator[_Asked]:
    """A task of a node, and one that is given a GPU where it has one; what our own Ray is on was looked at already."""
    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    options = {"num_cpus": 0, "scheduling_strategy": there, "max_retries": 0}
    name = f"node {node['NodeManagerAddress']}"
    run: Any = ray.remote(_versions if own else _on_node).options(**options)
    yield _Asked(name, _TASK, run.remote() if own else run.remote(sources, output))
    if gpus := node["Resources"].get("GPU", 0):
        run = ray.remote(_with_gpu).options(**options, num_gpus=min(1, gpus))
        yield _Asked(name, _GPU_TASK, run.remote())


_TASK, _GPU_TASK = "a task", "a task with a GPU"


def _answered(asked: _Asked) -> Iterator[Finding]:
    """What is wrong there, each by itself, and what is right in one line."""
    try:
        told: _Answer = ray.get(asked.answer)
    except RayError as error:
        reason = str(error).strip().splitlines()[-1]
        advice = "give the nodes the package by ray job submit --working-dir . or in their image"
        yield problem(asked.node, f"{asked.task} cannot run there: {reason}", advice)
        return
    wrong = [finding for finding in told.findings if finding.level != "ok"]
    yield from (one._replace(check=asked.node, found=f"{one.check}: {one.found}") for one in wrong)
    yield from _differences(asked.node, told.versions)
    right = [f"{one.check} {one.found}" for one in told.findings if one not in wrong and one.check in _SHOWN]
    checks = f", {len(told.findings) - len(wrong)} of {len(told.findings)} checks are ok" if told.findings else ""
    yield ok(asked.node, "; ".join([f"{asked.task} ran there{checks}", *right]))


_SHOWN = ("CPU", "memory", "GPU", "GPU 0")
"""Checks of which the line about a node has more than the number."""


def _differences(node: str, versions: Mapping[str, str]) -> Iterator[Finding]:
    here = _versions().versions
    other = [f"{name} {there}, here {here[name]}" for name, there in versions.items() if there != here[name]]
    if other:
        yield warning(node, f"has other versions: {', '.join(other)}", "give all nodes one image: else rows differ")


def _silent(asked: _Asked) -> Finding:
    waited = f"{asked.task} has not ended there within {ANSWER_S:.0f} s"
    if asked.task == _GPU_TASK:
        return warning(asked.node, f"{waited}: a job may have its GPUs", "try again after it, or see `ray status`")
    return problem(asked.node, waited, "see `ray status`, and the node's logs")


def _on_node(sources: Sequence[str], output: str) -> _Answer:
    """In a worker: the machine and the stores, with the environment that workers have."""
    return _Answer([*machine(), *devices(gpus=False), *stores(sources, output)], _versions().versions)


def _with_gpu() -> _Answer:
    """In a worker that was given a GPU."""
    return _Answer([finding for finding in devices(given=True) if finding.check != "CPU"], {})


def _versions() -> _Answer:
    """In a worker: that it runs, and with what."""
    return _Answer([], {name: installed(name) for name in _COMPARED})
