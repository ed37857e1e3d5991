"""The Ray that a command starts on this machine: where it listens, and what the command says when it dies."""

import contextlib
import os
import signal
import subprocess
import sys

import psutil
import pytest

from inpaint_encode.demo.pairs import write_random_pairs
from tests.cluster.heads import wait_for
from tests.hostile import ROOT
from tests.outputs import data_files


@pytest.fixture
def encoding(tmp_path, vae_folder):
    """A process of ``encode`` that has started Ray and has written a file, and what it writes to standard error."""
    write_random_pairs(tmp_path / "in", 400, seed=12, smallest=64, largest=96)
    options = ["--images", tmp_path / "in/images", "--masks", tmp_path / "in/masks", "--vae", vae_folder]
    options += ["--output", tmp_path / "out", "--samples-dtype", "float32", "--chunk-rows", "4", "--batch-size", "1"]
    hidden = (
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER",
        "RAY_ADDRESS",
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN",
        "RAY_BACKEND_LOG_LEVEL",
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "inpaint_encode", "encode", *map(str, options)],
        env={name: value for name, value in os.environ.items() if name not in hidden},
        stderr=subprocess.PIPE,
        text=True,
    )
    output = tmp_path / "out"
    try:
        wait_for(lambda: output.exists() and data_files(str(output)), 120, "a file", pause=0.5)
        yield process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):  # Ray ends with the process that started it
            for one in psutil.Process(process.pid).children(recursive=True):
                one.kill()
        process.kill()
        process.wait()


SEARCH = """
import ray, sys
from inpaint_encode.job.cluster import connect_ray
sys.path += sys.argv[2:]
with connect_ray(sys.argv[1]):
    print(ray.get(ray.remote(lambda: ("HERE", *sys.path)).remote()))
"""


@pytest.mark.parametrize("own", [False, True])
def test_workers_import_from_the_current_folder_only_if_the_command_does(detached_ray, tmp_path, own):
    """A stranger's folder may have a numpy.py; Python itself looks there only with ``python -m`` and the like."""
    script = [sys.executable, "-P", "-c", SEARCH, detached_ray, *([str(tmp_path)] if own else [])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert "HERE" in done.stdout, done.stderr
    assert (repr(str(tmp_path)) in done.stdout) is own


def listening(process) -> set[str]:
    """Addresses on which a process and its children listen."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    connections = [one for member in family for one in member.net_connections(kind="tcp")]
    return {one.laddr.ip for one in connections if one.status == psutil.CONN_LISTEN}


@pytest.mark.long
@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_local_ray_listens_here_only_and_its_death_is_one_sentence(encoding, name):
    assert listening(encoding) == {"127.0.0.1", "::ffff:127.0.0.1"}
    family = psutil.Process(encoding.pid).children(recursive=True)
    next(one for one in family if one.name() == name).send_signal(signal.SIGKILL)
    said = encoding.communicate(timeout=300)[1]
    assert encoding.returncode == 1
    assert said.splitlines()[-1].startswith(
        "error: this process ended suddenly: Ray on this machine or the cluster's head has died"
    )
