"""Jobs submitted with ``ray job submit`` on a cluster of two nodes: one with CPUs only, one with a GPU and one CPU.

All tests share the cluster. One job is stopped in its middle and resumed; the tests read what both have left.
"""

import contextlib
import json
import re
import runpy
import socket
import subprocess
import sys
import urllib.request
from functools import partial

import pytest

from inpaint_encode.demo.pairs import upload, write_random_pairs
from inpaint_encode.stores import storage
from tests.cluster.heads import BIN, ROOT, head, node, wait_for
from tests.outputs import data_files, files_of, whole_output
from tests.proxy import FaultyProxy

PAIRS, CHUNK = 160, 4
SIDE = 128
"""Height and width of every image, so that each batch of two images is one forward pass of two."""
SLOW_S = 2.0
"""Seconds for each image and mask of the job that is stopped: 40 chunks on 2 CPUs then take 40 s on any machine."""
EVENTS = ("objects_fetched", "images_decoded", "batches")
"""Events that every job counts."""
METRICS_PAGE = (ROOT / "cluster/README.md").read_text().split("## What to watch")[1].split("## ")[0]
METRICS = set(re.findall(r"`(ray_inpaint_encode_\w+)`", METRICS_PAGE))
"""Names of all documented metrics."""

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module")
def cluster(s3, warm_workers):
    options = ["--num-cpus=2", "--num-gpus=0", "--labels=pool=data", f"--object-store-memory={3 * 10**8}"]
    often = {"RAY_metrics_report_interval_ms": "1000"}
    with head(*options, **often) as started:
        gpu = ["--num-cpus=1", "--num-gpus=1", "--labels=pool=vae", f"--object-store-memory={3 * 10**8}"]
        with node(started, *gpu):
            wait_for(lambda: len(alive(started)) == 2, 300, "the second node")
            yield started


def alive(cluster):
    return [node for node in cluster.state("nodes") if node["state"] == "ALIVE"]


@pytest.fixture(scope="module")
def client(cluster):
    from ray.job_submission import JobSubmissionClient

    return JobSubmissionClient(cluster.dashboard)


@pytest.fixture(scope="module")
def source_store(s3):
    """A proxy in front of the S3 server. The jobs read images and masks through it, and nothing else."""
    with FaultyProxy(s3, kinds=("slow",), stall_s=SLOW_S) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def options(s3, source_store, vae_folder, tmp_path_factory):
    """Options of an encode job whose source has one broken image."""
    folder = tmp_path_factory.mktemp("submitted")
    write_random_pairs(folder, PAIRS, seed=9, smallest=SIDE, largest=SIDE)
    broken = min((folder / "images").rglob("*.*"))
    broken.write_bytes(b"not an image")
    upload(folder, s3.uri("submitted-in"))
    given = ["--images", s3.uri("submitted-in", "images"), "--masks", s3.uri("submitted-in", "masks")]
    given += ["--output", s3.uri("submitted-out"), "--vae", vae_folder, "--samples-dtype", "float32"]
    given += ["--endpoint-url", source_store.environment["AWS_ENDPOINT_URL"]]
    given += ["--chunk-rows", CHUNK, "--batch-size", "2"]
    given += ["--gpus-per-worker", "1", "--max-workers", "1", "--encode-cpus", "1"]
    return [str(one) for one in [*given, "--encode-on", "pool=vae", "--fetch-on", "pool=data"]]


def ray_job(cluster, *arguments):
    """``ray job …`` as a user types it."""
    command = [BIN / "ray", "job", arguments[0], "--address", cluster.dashboard, *arguments[1:]]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600, cwd=ROOT)


def submit(cluster, name, *entrypoint, wait=True, runtime_env=None):
    how = [] if wait else ["--no-wait"]
    how += ["--runtime-env-json", json.dumps(runtime_env or {})]
    return ray_job(cluster, "submit", "--working-dir", ".", "--submission-id", name, *how, "--", "python", *entrypoint)


def series(cluster) -> list[tuple[str, str, float]]:
    """Name, tags and value of each series of the package at the endpoints that Ray lists for Prometheus."""
    services = json.loads((cluster.folder / "prom_metrics_service_discovery.json").read_text())
    pages = "\n".join(page(target) for service in services for target in service["targets"])
    found = re.findall(r"^(ray_inpaint_encode_\w+)\{(.*)\} ([\d.e+-]+)$", pages, re.MULTILINE)
    return [(name, tags, float(value)) for name, tags, value in found]


def page(target) -> str:
    """Text of an endpoint; empty if it does not answer now."""
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(f"http://{target}/metrics", timeout=10).read().decode()
    return ""


def totals(found) -> dict[str, float]:
    """Sum of each metric over its tags."""
    sums = dict.fromkeys({name for name, _, _ in found}, 0.0)
    for name, _, value in found:
        sums[name] += value
    return sums


def tag_values(found) -> set[tuple[str, str]]:
    """Tags that say what is counted, with their values."""
    tags = [pair for _, tags, _ in found for pair in re.findall(r'(\w+)="([^"]*)"', tags)]
    return {pair for pair in tags if pair[0] in {"outcome", "stage", "size", "event"}}


@pytest.fixture(scope="module")
def stopped(cluster, client, options, source_store, s3):
    """Stop a slow job in its middle; return its metrics at two moments and its number of data files.

    At the first moment every documented metric is there. At the second all of them have changed.
    """
    source_store.share = 1.0
    submitted = submit(cluster, "stopped", "jobs/encode.py", *options, wait=False)
    assert submitted.returncode == 0, submitted.stderr

    def scrape_all():
        assert not client.get_job_status("stopped").is_terminal(), client.get_job_logs("stopped")
        found = series(cluster)
        return found if totals(found).keys() >= METRICS else None

    def scrape_changed():
        now = totals(found := series(cluster))
        return found if all(now.get(name, before) != before for name, before in totals(first).items()) else None

    logs = partial(client.get_job_logs, "stopped")
    first = wait_for(scrape_all, 900, "every documented metric", logs, pause=1.0)
    second = wait_for(scrape_changed, 600, "a change of every metric", logs, pause=1.0)
    assert ray_job(cluster, "stop", "stopped").returncode == 0
    wait_for(lambda: client.get_job_status("stopped").is_terminal(), 120, "the end of the job")
    # `ray job stop` sends SIGTERM, and SIGKILL three seconds later.
    assert "_lease.json" not in files_of(s3.uri("submitted-out")), client.get_job_logs("stopped")
    source_store.share = 0.0
    return first, second, len(data_files(s3.uri("submitted-out")))


@pytest.fixture(scope="module")
def resumed(cluster, stopped, options, warm_workers):
    """The same command again, up to its end."""
    return submit(cluster, "resumed", "jobs/encode.py", *options, runtime_env=warm_workers)


def test_a_stopped_job_resumes_and_encodes_every_pair_once(client, stopped, resumed, s3):
    *_, files = stopped
    assert client.get_job_status("stopped") == "STOPPED"
    assert 0 < files < PAIRS / CHUNK
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert client.get_job_info("resumed").driver_exit_code in (0, None)
    report = whole_output(s3.uri("submitted-out"))
    assert (report["encoded"], report["rejected"]) == (PAIRS - 1, 1)
    assert 0 < report["this_run"]["encoded"] <= PAIRS - files
    assert "writing to this output" not in resumed.stdout
    assert f"{PAIRS} pairs: {PAIRS - 1} encoded, 1 rejected" in resumed.stdout


def test_each_stage_runs_on_the_nodes_with_its_label(cluster, resumed):
    pools = {node["node_id"]: node["labels"]["pool"] for node in alive(cluster)}

    def tasks_of(stage):
        """Tasks of a stage in Ray's state API, which lists a task some time after it has run."""
        tasks = [task for task in cluster.state("tasks") if task["node_id"]]
        found = [task for task in tasks if f"MapBatches({stage})" in task["name"]]
        return found if len(found) >= 10 else None

    for stage, pool in {"fetch_stage": "data", "EncodeStage": "vae", "commit_stage": "data"}.items():
        tasks = wait_for(lambda stage=stage: tasks_of(stage), 60, f"ten tasks of {stage}")
        assert {pools[task["node_id"]] for task in tasks} == {pool}, stage


def test_every_documented_metric_exists_and_changes(stopped):
    first, second, _ = stopped
    assert len(METRICS) == 5
    assert totals(first).keys() == totals(second).keys() == METRICS
    tags = tag_values(second)
    assert tags >= {("outcome", "encoded"), ("size", "2"), *(("event", name) for name in EVENTS)}
    stages = {value for tag, value in tags if tag == "stage"}
    assert stages == {"fetch", "decode", "wait", "copy", "encode", "copy_back", "write"}
    for word in {*EVENTS, *stages}:
        assert f"`{word}`" in METRICS_PAGE, word


def test_a_rejected_pair_is_in_the_workers_logs(cluster, resumed, s3):
    """Once per attempt: the job may have been stopped between the log line and the commit of the chunk."""
    job = whole_output(s3.uri("submitted-out"))["job"]["job"]
    lines = [line for line in cluster.worker_logs().splitlines() if '"pair rejected"' in line]
    assert len(lines) in (1, 2)
    for record in map(json.loads, lines):
        assert (record["job"], record["error"]) == (job, "image.not_an_image")
        assert record["key"] == "000/000000"
        assert "node_id" in record


def test_each_job_ends_with_the_exit_code_of_its_command(client, resumed, options, s3, warm_workers):
    """All of them run side by side."""
    damaged = s3.uri("damaged-out")
    copy_damaged(s3.uri("submitted-out"), damaged)
    jobs = {
        "no-cuda": (1, f"python jobs/encode.py {' '.join(options).replace('submitted-out', 'no-cuda-out')}"),
        "damaged": (4, f"python jobs/verify.py {damaged}"),
        "report": (0, f"python jobs/report.py {s3.uri('submitted-out')}"),
        "plan": (0, f"python jobs/plan.py {' '.join(options[:4])} --as-json"),
        "export": (0, f"python jobs/export.py {s3.uri('submitted-out')} --to webdataset --output {s3.uri('tars')}"),
        "benchmark": (0, "python -m jobs.benchmarks --quick --only write"),
    }
    uploaded = client.get_job_info("resumed").runtime_env["working_dir"]
    for name, (_, entrypoint) in jobs.items():
        environment = {"working_dir": uploaded, **warm_workers}
        if name == "no-cuda":
            environment["env_vars"] = {"INPAINT_ENCODE_LOGICAL_GPUS": "0"}
        client.submit_job(entrypoint=entrypoint, submission_id=name, runtime_env=environment)
    for name, (code, _) in jobs.items():
        wait_for(lambda name=name: client.get_job_status(name).is_terminal(), 600, f"the end of {name}", pause=1.0)
        assert client.get_job_status(name) == ("FAILED" if code else "SUCCEEDED"), client.get_job_logs(name)
        assert (client.get_job_info(name).driver_exit_code or 0) == code, client.get_job_logs(name)
    assert "the record is jobs/benchmarks/records/" in client.get_job_logs("benchmark")
    said = " ".join(client.get_job_logs("no-cuda").split())
    assert f"a VAE worker has 1 GPU on node {socket.gethostname()}, but torch finds no CUDA device" in said
    assert "is not complete: 1 problem" in client.get_job_logs("damaged")
    assert re.search(r"image\.not_an_image +1$", client.get_job_logs("report"), re.MULTILINE)
    plan = client.get_job_logs("plan")
    assert json.loads(plan[plan.index("{\n") :])["pairs"] == PAIRS


def copy_damaged(output, other):
    """Copy an output; cut one of its data files in half."""
    damaged = data_files(output)[0]
    for path in files_of(output):
        data = storage.read(f"{output}/{path}").data
        storage.write(f"{other}/{path}", data[: len(data) // 2] if path == damaged else data)


def test_a_node_answers_the_image_s_health_check(cluster):
    (path,) = re.findall(r"http://127\.0\.0\.1:52365(/\S+)", (ROOT / "cluster/Dockerfile").read_text())
    assert b"success" in urllib.request.urlopen(f"http://127.0.0.1:{cluster.agent}{path}", timeout=10).read()


def test_a_failed_job_fails_its_submitter(cluster, client, options):
    assert submit(cluster, "bad-use", "jobs/encode.py", *options, "--grow-mask-by", "99").returncode == 1
    assert client.get_job_info("bad-use").driver_exit_code == 2
    assert "--grow-mask-by" in client.get_job_logs("bad-use")


@pytest.mark.parametrize("job", sorted(path.name for path in (ROOT / "jobs").glob("[a-z]*.py")))
def test_every_job_has_help(job, host_process, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [job, "--help"])
    runpy.run_path(str(ROOT / "jobs" / job), run_name="__main__")
    assert "Usage" in capsys.readouterr().out
