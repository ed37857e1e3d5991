"""The command ``doctor`` on real Ray clusters: findings of nodes, and nodes that fail or do not answer."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from inpaint_encode.stores import storage
from inpaint_encode.tools.doctor import nodes
from inpaint_encode.tools.doctor.nodes import check_nodes
from tests.conftest import command
from tests.outputs import files_of

RAY = Path(sys.executable).parent / "ray"


@pytest.fixture
def cluster(ray_cluster, monkeypatch):
    """The session's cluster, by RAY_ADDRESS."""
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster)
    return ray_cluster


def test_every_node_reads_and_writes(cluster, s3):
    storage.write(s3.uri("doctor-ray/images/a.png"), b"1")
    about, node = check_nodes("", [s3.uri("doctor-ray/images")], s3.uri("doctor-ray/out"), lambda _: None)
    there = len([one for one in ray.nodes() if one["Alive"]])
    assert (about.level, about.found.startswith(f"{there} node, 4 CPUs, 0 GPUs")) == ("ok", True)
    assert (node.level, node.check) == ("ok", f"node {ray.nodes()[0]['NodeManagerAddress']}")
    assert node.found.startswith("a task ran, 11 of 11 checks are ok; memory ")
    assert files_of(s3.uri("doctor-ray/out")) == []


def test_problem_of_a_node_names_the_node(cluster, tmp_path):
    _, wrong, node = check_nodes("", [str(tmp_path / "none")], "", lambda _: None)
    assert (wrong.level, wrong.check) == ("problem", node.check)
    assert wrong.found == f"{tmp_path}/none: cannot be read (No such file or directory)"
    assert "check the spelling" in wrong.advice
    assert (node.level, "7 of 8 checks are ok" in node.found) == ("ok", True)


def test_other_versions_on_a_node_are_a_warning():
    here = nodes._versions()
    assert list(nodes._compare_versions("node", here)) == []
    (finding,) = nodes._compare_versions("node", {**here, "numpy": "0.1"})
    assert (finding.level, finding.found) == ("warning", f"has other versions: numpy 0.1, here {here['numpy']}")


def test_node_that_does_not_answer_is_a_problem(cluster, monkeypatch):
    monkeypatch.setattr(nodes, "TIMEOUT_S", 0.0)
    _, node = check_nodes("", [], "", lambda _: None)
    assert (node.level, node.found) == ("problem", "a task did not finish within 0 s")


@pytest.mark.long
def test_command_starts_its_own_ray():
    done = command("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "starting Ray, which takes about ten seconds" in done.stderr
    assert ": a task ran\n" in done.stdout


@pytest.mark.long
def test_unreachable_cluster_is_a_problem():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nowhere = f"127.0.0.1:{taken.getsockname()[1]}"
    done = command("doctor", "--address", nowhere)
    assert done.returncode == 1
    assert f"problem Ray: the Ray cluster at {nowhere} cannot be joined: Connection refused" in done.stdout


@pytest.mark.long
def test_node_without_gpu_and_node_without_package_are_problems(detached_ray, tmp_path):
    """One node has a GPU only by its number; another has a broken package with our name.

    Nodes of Ray import from the folder of the driver, so the driver runs in a folder of its own.
    """
    for folder in ("elsewhere", "lost/inpaint_encode"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "lost/inpaint_encode/__init__.py").write_text("raise ModuleNotFoundError('it is not whole')")
    here = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"RAY_ADDRESS": detached_ray}
    program = [sys.executable, "-c", "from inpaint_encode.cli import main; main(['doctor'])"]
    with node(detached_ray, INPAINT_ENCODE_LOGICAL_GPUS="0"), node(detached_ray, PYTHONPATH=str(tmp_path / "lost")):
        done = subprocess.run(
            program, env=here, cwd=tmp_path / "elsewhere", capture_output=True, text=True, timeout=200
        )
    lines = [line for line in done.stdout.splitlines() if " node " in line]
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Ray: 3 nodes, 6 CPUs, 2 GPUs" in done.stdout
    assert sum("GPU: none, because there is no NVIDIA driver" in line for line in lines) == 1
    assert sum("a task cannot run (ModuleNotFoundError" in line for line in lines) == 1


@contextlib.contextmanager
def node(address, **environment):
    """A node that joins the cluster, with a CPU and a logical GPU."""
    arguments = ["start", f"--address={address}", "--block", "--num-cpus=1", "--num-gpus=1", "--disable-usage-stats"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    before = count_nodes(address)
    process = subprocess.Popen([RAY, *arguments], env={**os.environ, **environment}, **quiet)
    try:
        deadline = time.monotonic() + 60
        while count_nodes(address) == before and time.monotonic() < deadline:
            time.sleep(1)
        yield
    finally:
        process.kill()
        process.wait(30)


def count_nodes(address):
    status = subprocess.run([RAY, "status", f"--address={address}"], capture_output=True, text=True, check=True)
    return status.stdout.partition("Pending:")[0].count(" node_")
