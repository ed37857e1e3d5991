"""Fixtures of all tests: one S3 server and one Ray cluster for the session, small VAEs, and the command line."""

import json
import multiprocessing
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from inpaint_encode.demo.s3server import LocalS3
from inpaint_encode.job.progress import Display
from jobs.benchmarks.session import RaySession
from tests.warm import WarmWorkers

# Before anything imports ray, which reads them once.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault(
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1"
)  # the Rays of the tests listen on this machine's address
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("INPAINT_ENCODE_LOGICAL_GPUS", "1")  # of nodes that tests start; their workers inherit it


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Send all tests that share a Ray to one process, and the tests of every other file to any one."""
    from xdist.scheduler import LoadFileScheduling

    class ByRayOrFile(LoadFileScheduling):
        def _split_scope(self, nodeid):
            path = nodeid.partition("::")[0]
            return path.rpartition("/")[0] if path.startswith(("tests/ray/", "tests/cluster/")) else path

    return ByRayOrFile(config, log)


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory):
    """Marks of own outputs are not left in the home of whoever runs the tests."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """An S3 server. Its credentials and its endpoint are in the environment."""
    with LocalS3(tmp_path_factory.mktemp("s3")) as server:
        os.environ.update(server.environment)
        os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))  # for VAEs downloaded from the server
        yield server


@pytest.fixture(scope="session")
def warm_workers():
    """Runtime environment whose Ray workers are forked from one process; for Rays that start after this."""
    with WarmWorkers():
        yield {"py_executable": WarmWorkers.executable}


@pytest.fixture(scope="session")
def detached_ray(s3, warm_workers):
    """Address of a real Ray whose workers read the S3 server; drivers join and leave it, and may be killed."""
    with RaySession(cpus=4, store_bytes=2**30) as session:
        yield session.address


@pytest.fixture(scope="session")
def ray_cluster(detached_ray, warm_workers):
    """Address of the same Ray; this process has joined it."""
    import ray

    ray.init(detached_ray, log_to_driver=False, runtime_env=warm_workers)
    yield detached_ray
    ray.shutdown()


@pytest.fixture(scope="session")
def driver(detached_ray, warm_workers):
    """Start a function in a driver process of its own, which may be killed; return the process.

    A fork server has imported all modules, so that a start costs a second.
    """
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["inpaint_encode.job.pipeline", "inpaint_encode.core.encoder", "diffusers.models"])

    def start(function, *arguments, runtime_env: dict = warm_workers, **environment: str) -> multiprocessing.Process:
        about = (detached_ray, runtime_env, environment, function, arguments)
        process = processes.Process(target=run_driver, args=about)
        process.start()
        return process

    return start


def run_driver(address, runtime_env, environment, function, arguments) -> None:
    """Join Ray with workers that see ``environment`` too, and call the function."""
    import ray

    os.environ.update(environment)
    runtime_env = {**runtime_env, "env_vars": environment}
    ray.init(address, log_to_driver=False, logging_level="ERROR", runtime_env=runtime_env)
    function(*arguments)


@pytest.fixture(scope="session")
def vae_folder(tmp_path_factory):
    """Folder of a small AutoencoderKL with random weights and downscale factor 8, in the diffusers layout."""
    return save_vae(tmp_path_factory.mktemp("vae"), levels=4)


def save_vae(folder: Path, *, levels: int, channels: int = 4, seed: int = 0) -> str:
    """Save an AutoencoderKL with the downscale factor ``2 ** (levels - 1)``; return its folder."""
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=channels,
        norm_num_groups=4,
        layers_per_block=1,
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def demo(tmp_path_factory, s3, ray_cluster, vae_folder):
    """The demo set on disk and in the bucket, and the output of the command ``encode``."""
    from inpaint_encode.demo.pairs import upload, write_demo_pairs

    folder = tmp_path_factory.mktemp("demo")
    pairs = write_demo_pairs(folder)
    upload(folder, s3.uri("demo-in"))
    output = s3.uri("demo-out")
    options = ["--images", s3.uri("demo-in", "images"), "--masks", s3.uri("demo-in", "masks"), "--output", output]
    options += ["--vae", vae_folder, "--samples-dtype", "float32", "--chunk-rows", 8, "--max-rejected", "10%"]
    options += ["--also-original"]
    done = command("encode", *options, RAY_ADDRESS=ray_cluster)
    assert done.returncode == 0, done.stderr
    return {
        "folder": folder,
        "pairs": pairs,
        "output": output,
        "prefix": s3.uri("demo-in"),
        "options": options,
        "done": done,
    }


@pytest.fixture(scope="session")
def demo_rows(demo) -> list[dict]:
    """Rows of the demo's output, read by Ray."""
    import ray.data

    return ray.data.read_parquet(demo["output"], file_extensions=["parquet"]).take_all()


@pytest.fixture(scope="session")
def copied_demo(demo, tmp_path_factory):
    """Copy of the demo's output on a disk, for readers without S3."""
    from inpaint_encode.stores import storage

    folder = tmp_path_factory.mktemp("copied")
    for path in [path for listed in storage.list_objects(demo["output"]) for path in listed.paths]:
        storage.write(str(folder / path), storage.read(f"{demo['output']}/{path}").data)
    return folder


@pytest.fixture
def display():
    return Display()


@pytest.fixture(scope="session")
def make_job(vae_folder):
    """Build an `EncodeJob` from flat options."""
    from inpaint_encode.settings import (
        Decoding,
        EncodeJob,
        Limits,
        Output,
        RowSettings,
        RunOptions,
        Source,
        VaeSource,
        Workers,
    )

    def make(images, masks, output, **options):
        options = {"vae": vae_folder, "samples_dtype": "float32", "max_rejected": "100%", **options}
        given = {"images": images, "masks": masks, "output": output, **options}
        sections = {"source": Source, "vae": VaeSource, "output": Output, "rows": RowSettings, "workers": Workers}
        sections |= {"decoding": Decoding, "limits": Limits}
        parts = {
            name: kind(
                **{
                    field: str(value) if isinstance(value, Path) else value
                    for field, value in given.items()
                    if field in kind.model_fields
                }
            )
            for name, kind in {**sections, "run": RunOptions}.items()
        }
        unknown = given.keys() - {field for part in parts.values() for field in type(part).model_fields}
        assert not unknown, unknown
        return EncodeJob(**parts)

    return make


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """Run ``inpaint-encode`` in a process of its own; on a running Ray, it has warm workers."""
    if "RAY_ADDRESS" in environment:
        job = {"runtime_env": {"py_executable": WarmWorkers.executable}}
        environment = {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job), **environment}
    return subprocess.run(
        [sys.executable, "-m", "inpaint_encode", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, **environment},
    )


@pytest.fixture
def host_process():
    """Restore signal handlers and the configuration of the command line after a test that runs commands here."""
    from inpaint_encode.cli.commands import app

    config, signals = app.config, (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.getsignal(number) for number in signals}
    yield
    app.config = config
    signal.set_wakeup_fd(-1)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def shell(host_process, capsys):
    """Run ``inpaint-encode`` in this process; return what `command` returns."""
    from inpaint_encode import cli
    from inpaint_encode.cli.commands import app

    config = app.config

    def run(*arguments: object) -> subprocess.CompletedProcess:
        app.config = config
        try:
            cli.main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as end:
            code = end.code
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return run
