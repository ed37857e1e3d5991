"""Checks of Ray and of every node: one task per node, and one more with a GPU if the node has one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.filesize import decimal

from inpaint_encode.errors import JobFailed
from inpaint_encode.job.cluster import connect_ray
from inpaint_encode.tools import pluralize

from .findings import Finding, ok, problem, warning
from .machine import PACKAGES, check_devices, check_machine, installed_version
from .stores import check_stores

TIMEOUT_S = 60.0
"""Seconds that nodes have to finish: a first worker imports torch, and a job may use the GPUs."""

_SHOWN_CHECKS = ("CPU", "memory", "GPU", "GPU 0")
"""Checks whose findings are part of a node's line."""

_TASK, _GPU_TASK = "a task", "a task with a GPU"

_Task = tuple[str, str, Any]
"""Name of the node, `_TASK` or `_GPU_TASK`, and the reference to the findings and to the versions of packages."""


def check_nodes(
    address: str, sources: Sequence[str], output: str, on_status: Callable[[str], None]
) -> Iterator[Finding]:
    """Join the cluster, or start Ray here, and check every node.

    Args:
        address: of the cluster; empty for RAY_ADDRESS, or without it a Ray that is started here.
        sources: URIs that each node must be able to read.
        output: URI that each node must be able to write; empty for none.
        on_status: called before each slow step, with its description.
    """
    cluster = address or os.environ.get("RAY_ADDRESS", "")
    on_status(f"joining the Ray cluster at {cluster}" if cluster else "starting Ray, which takes about ten seconds")
    start = time.monotonic()
    try:
        with connect_ray(address):
            nodes = [node for node in ray.nodes() if node["Alive"]]
            resources = ray.cluster_resources()
            cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
            counts = f"{pluralize(len(nodes), 'node')}; CPUs: {cpus:g}, GPUs: {gpus:g}"
            store = decimal(int(resources.get("object_store_memory", 0)))
            joined = f"Ray {ray.__version__}, joined in {time.monotonic() - start:.0f} s"
            yield ok("Ray", f"{counts}, {store} of object store; {joined}")
            on_status("checking the nodes")
            tasks = [task for node in nodes for task in _start(node, sources, output, local=not cluster)]
            done, _ = ray.wait([result for *_, result in tasks], num_returns=len(tasks), timeout=TIMEOUT_S)
            for node_name, task, result in tasks:
                yield from _findings_of(node_name, task, result, done=result in done)
    except JobFailed as error:
        remote = "run `ray status` on its head node, and check firewalls"
        yield problem("Ray", str(error), remote if cluster else "read the logs that the error names")


def _start(node: Mapping[str, Any], sources: Sequence[str], output: str, *, local: bool) -> Iterator[_Task]:
    """Start the tasks of a node; a local one only reports versions, since the machine is already checked."""
    strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    options = {"num_cpus": 0, "scheduling_strategy": strategy, "max_retries": 0}
    name = f"node {node['NodeManagerAddress']}"
    task: Any = ray.remote(_check_node).options(**options)
    yield name, _TASK, task.remote(sources, output, local=local)
    if gpus := node["Resources"].get("GPU", 0):
        task = ray.remote(_check_gpus_of_node).options(**options, num_gpus=min(1, gpus))
        yield name, _GPU_TASK, task.remote()


def _findings_of(node: str, task: str, result: Any, *, done: bool) -> Iterator[Finding]:
    """Yield each problem and warning of a node, then one line about all that is ok; stop a task that is late."""
    if not done:
        ray.cancel(result, force=True)
        found = f"{task} did not finish within {TIMEOUT_S:.0f} s"
        if task == _GPU_TASK:
            yield warning(
                node, f"{found}; a job may be using the GPUs of this node", "try again after the job; see `ray status`"
            )
        else:
            yield problem(node, found, "see `ray status` and the logs of the node")
        return
    try:
        findings, versions = ray.get(result)
    except RayError as error:
        reason = str(error).strip().splitlines()[-1]
        advice = "install the package in the nodes' image, or submit with: ray job submit --working-dir ."
        yield problem(node, f"{task} cannot run ({reason})", advice)
        return
    wrong = [finding for finding in findings if finding.level != "ok"]
    yield from (one._replace(check=node, found=f"{one.check}: {one.found}") for one in wrong)
    here = _versions()
    if other := [f"{name} {there}, here {here[name]}" for name, there in versions.items() if there != here[name]]:
        advice = "use one image for all nodes: rows depend on these versions"
        yield warning(node, f"has other versions: {', '.join(other)}", advice)
    shown = [f"{one.check} {one.found}" for one in findings if one not in wrong and one.check in _SHOWN_CHECKS]
    reached = "reachable" if task == _TASK else "a GPU task ran"
    count = f"; {len(findings) - len(wrong)} of {len(findings)} checks passed" if findings else ""
    yield ok(node, "; ".join([f"{reached}{count}", *shown]))


def _check_node(sources: Sequence[str], output: str, *, local: bool) -> tuple[list[Finding], dict[str, str]]:
    """Check the machine and the stores, in a worker with its environment."""
    findings = [] if local else [*check_machine(), *check_devices(gpus=False), *check_stores(sources, output)]
    return findings, _versions()


def _check_gpus_of_node() -> tuple[list[Finding], dict[str, str]]:
    """Check GPUs, in a worker with a reserved GPU."""
    return [finding for finding in check_devices(gpu_reserved=True) if finding.check != "CPU"], {}


def _versions() -> dict[str, str]:
    return {name: installed_version(name) for name in PACKAGES}
