"""The command ``doctor`` on real Ray clusters: findings of nodes, and nodes that fail or do not answer."""

import os
import socket
import subprocess
import sys

import pytest
import ray

from inpaint_encode.stores import storage
from inpaint_encode.tools.doctor import nodes
from inpaint_encode.tools.doctor.nodes import check_nodes
from tests.cluster.heads import ray_start, wait_for
from tests.conftest import command
from tests.outputs import files_of


@pytest.fixture
def cluster(ray_cluster, monkeypatch):
    """The session's cluster as a running cluster that RAY_ADDRESS names."""
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster)
    return ray_cluster


def test_every_node_reads_and_writes(cluster, s3):
    storage.write(s3.uri("doctor-ray/images/a.png"), b"1")
    about, node = check_nodes("", [s3.uri("doctor-ray/images")], s3.uri("doctor-ray/out"), lambda _: None)
    there = len([one for one in ray.nodes() if one["Alive"]])
    assert (about.level, about.found.startswith(f"{there} node; CPUs: 4, GPUs: 0")) == ("ok", True)
    assert (node.level, node.check) == ("ok", f"node {ray.nodes()[0]['NodeManagerAddress']}")
    assert node.found.startswith("reachable; 11 of 11 checks passed; memory ")
    assert files_of(s3.uri("doctor-ray/out")) == []


def test_a_problem_names_its_node(cluster, tmp_path):
    _, wrong, node = check_nodes("", [str(tmp_path / "none")], "", lambda _: None)
    assert (wrong.level, wrong.check) == ("problem", node.check)
    assert wrong.found == f"{tmp_path}/none: cannot be read (No such file or directory)"
    assert "check the spelling" in wrong.advice
    assert (node.level, "7 of 8 checks passed" in node.found) == ("ok", True)


def test_other_versions_on_a_node_are_a_warning(cluster, monkeypatch):
    """Only this process has another version: the worker calls the function itself."""
    versions = nodes._versions()
    monkeypatch.setattr(nodes, "_versions", lambda: {**versions, "numpy": "0.1"})
    _, finding, node = check_nodes("", [], "", lambda _: None)
    assert (finding.level, finding.check) == ("warning", node.check)
    assert finding.found == f"has other versions: numpy {versions['numpy']}, here 0.1"


def test_a_node_that_does_not_answer_is_a_problem(cluster, monkeypatch):
    def hang(*_: object, **__: object) -> None:
        import time

        time.sleep(600)

    monkeypatch.setattr(nodes, "_check_node", hang)
    monkeypatch.setattr(nodes, "TIMEOUT_S", 1.0)
    _, node = check_nodes("", [], "", lambda _: None)
    assert (node.level, node.found) == ("problem", "a task did not finish within 1 s")


@pytest.mark.long
def test_doctor_starts_ray_where_there_is_none():
    done = command("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "starting Ray, which takes about ten seconds" in done.stderr
    assert ": reachable\n" in done.stdout


@pytest.mark.long
def test_a_cluster_that_does_not_exist_is_a_problem():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nowhere = f"127.0.0.1:{taken.getsockname()[1]}"
    done = command("doctor", "--address", nowhere)
    assert done.returncode == 1
    assert f"problem Ray: cannot connect to the Ray cluster at {nowhere}; check" in done.stdout


@pytest.mark.long
def test_nodes_without_a_gpu_or_the_package_are_problems(ray_cluster, tmp_path):
    """One node's GPU is only a number. Another node has a package of our name that cannot be imported.

    Workers can import from the folder of their driver. The driver therefore runs in an empty folder.
    """
    for folder in ("elsewhere", "lost/inpaint_encode"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "lost/inpaint_encode/__init__.py").write_text("raise ModuleNotFoundError('it is not whole')")
    here = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"RAY_ADDRESS": ray_cluster}
    program = [sys.executable, "-c", "from inpaint_encode.cli import main; main(['doctor'])"]
    joining = [f"--address={ray_cluster}", "--num-cpus=1", "--num-gpus=1"]
    without_gpu, lost = {"INPAINT_ENCODE_LOGICAL_GPUS": "0"}, {"PYTHONPATH": str(tmp_path / "lost")}
    with ray_start(*joining, **without_gpu), ray_start(*joining, **lost):
        wait_for(lambda: len([one for one in ray.nodes() if one["Alive"]]) == 3, 300, "the nodes")
        done = subprocess.run(program, env=here, cwd=tmp_path / "elsewhere", capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if " node " in line]
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Ray: 3 nodes; CPUs: 6, GPUs: 2" in done.stdout
    assert sum("GPU: none, because there is no NVIDIA driver" in line for line in lines) == 1
    assert sum("a task cannot run (ModuleNotFoundError" in line for line in lines) == 1
