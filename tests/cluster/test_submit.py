"""Jobs as operators submit them, on a cluster of two nodes: one with CPUs and no GPU, one with a GPU and a single CPU.

The jobs run one after the other on one cluster, and the tests read what they left.
"""

import contextlib
import json
import re
import socket
import subprocess
import urllib.request

import pytest

from inpaint_encode.demo.pairs import upload, write_random_pairs
from inpaint_encode.stores import storage
from tests.cluster.heads import BIN, ROOT, head, node, wait_for
from tests.outputs import data_files, files_of, whole_output

PAIRS, CHUNK = 160, 4
MOVED = ("objects_fetched", "images_decoded", "batches")
"""Counters that every job moves."""

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def cluster(s3):
    options = ["--num-cpus=4", "--num-gpus=0", "--labels=pool=data", f"--object-store-memory={3 * 10**8}"]
    often = {"RAY_metrics_report_interval_ms": "1000"}
    with head(*options, **often) as started:
        gpu = ["--num-cpus=1", "--num-gpus=1", "--labels=pool=vae", f"--object-store-memory={3 * 10**8}"]
        with node(started, *gpu, **often):
            wait_for(lambda: len(alive(started)) == 2, 60, "the second node")
            yield started


def alive(cluster):
    return [node for node in cluster.state("nodes") if node["state"] == "ALIVE"]


@pytest.fixture(scope="module")
def client(cluster):
    from ray.job_submission import JobSubmissionClient

    return JobSubmissionClient(cluster.dashboard)


@pytest.fixture(scope="module")
def options(s3, vae_folder, tmp_path_factory):
    """An encode job whose source has one broken file."""
    folder = tmp_path_factory.mktemp("submitted")
    write_random_pairs(folder, PAIRS, seed=9, smallest=96, largest=160)
    broken = min((folder / "images").rglob("*.*"))
    broken.write_bytes(b"not an image")
    upload(folder, s3.uri("submitted-in"))
    given = ["--images", s3.uri("submitted-in", "images"), "--masks", s3.uri("submitted-in", "masks")]
    given += ["--output", s3.uri("submitted-out"), "--vae", vae_folder, "--samples-dtype", "float32"]
    given += ["--chunk-rows", CHUNK, "--batch-size", "2"]
    given += ["--gpus-per-worker", "1", "--max-workers", "1", "--encode-cpus", "1"]
    return [str(one) for one in [*given, "--encode-on", "pool=vae", "--fetch-on", "pool=data"]]


def ray_job(cluster, *arguments):
    """``ray job …`` as a user types it."""
    command = [BIN / "ray", "job", arguments[0], "--address", cluster.dashboard, *arguments[1:]]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=240, cwd=ROOT)


def submit(cluster, name, *entrypoint, wait=True):
    how = [] if wait else ["--no-wait"]
    return ray_job(cluster, "submit", "--working-dir", ".", "--submission-id", name, *how, "--", "python", *entrypoint)


def scraped(cluster) -> dict[str, float]:
    """Every series of ours at the endpoints that Ray tells Prometheus of, by name, summed over its tags."""
    found: dict[str, float] = {}
    for name, _, value in series(cluster):
        found[name] = found.get(name, 0) + float(value)
    return found


def series(cluster) -> list[tuple[str, str, str]]:
    """Name, tags and value."""
    services = json.loads((cluster.folder / "prom_metrics_service_discovery.json").read_text())
    pages = "\n".join(page(target) for service in services for target in service["targets"])
    return re.findall(r"^(ray_inpaint_encode_\w+)\{(.*)\} ([\d.e+-]+)$", pages, re.MULTILINE)


def tag_values(cluster) -> set[tuple[str, str]]:
    """The tags that say what is counted, with their values."""
    tags = [pair for _, tags, _ in series(cluster) for pair in re.findall(r'(\w+)="([^"]*)"', tags)]
    return {pair for pair in tags if pair[0] in {"outcome", "stage", "size", "event"}}


def page(target) -> str:
    """An endpoint's text, or nothing if it is too busy to answer."""
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(f"http://{target}/metrics", timeout=10).read().decode()
    return ""


@pytest.fixture(scope="module")
def stopped(cluster, client, options, s3):
    """A job that was stopped in its middle, and what its metrics said at two moments before."""
    submitted = submit(cluster, "stopped", "jobs/encode.py", *options, wait=False)
    assert submitted.returncode == 0, submitted.stderr
    first = wait_for(lambda: done_of(scraped(cluster)) and scraped(cluster), 240, "the first metrics")
    second = wait_for(
        lambda: done_of(scraped(cluster)) > done_of(first) and scraped(cluster), 120, "a count that moves"
    )
    tags = tag_values(cluster)
    assert ray_job(cluster, "stop", "stopped").returncode == 0
    wait_for(lambda: client.get_job_status("stopped").is_terminal(), 60, "the end of the job")
    return first, second, tags, len(data_files(s3.uri("submitted-out")))


def done_of(metrics) -> float:
    return metrics.get("ray_inpaint_encode_rows_total", 0)


@pytest.fixture(scope="module")
def resumed(cluster, stopped, options):
    return submit(cluster, "resumed", "jobs/encode.py", *options)


def test_a_stopped_job_is_gone_on_with_and_ends_exact(client, stopped, resumed, s3):
    *_, files = stopped
    assert client.get_job_status("stopped") == "STOPPED"
    assert 0 < files < PAIRS / CHUNK, "it was to be stopped in its middle"
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert client.get_job_info("resumed").driver_exit_code in (0, None)
    report = whole_output(s3.uri("submitted-out"))
    assert (report["encoded"], report["rejected"]) == (PAIRS - 1, 1)
    assert 0 < report["this_run"]["encoded"] <= PAIRS - files
    assert f"{PAIRS} pairs: {PAIRS - 1} encoded, 1 rejected" in resumed.stdout


def test_stages_land_where_they_should(cluster, resumed):
    pools = {node["node_id"]: node["labels"]["pool"] for node in alive(cluster)}
    stages = {"fetch_stage": "data", "EncodeStage": "vae", "commit_stage": "data"}
    tasks = [task for task in cluster.state("tasks") if task["node_id"] and "MapBatches(" in task["name"]]
    for stage, pool in stages.items():
        where = [pools[task["node_id"]] for task in tasks if f"MapBatches({stage})" in task["name"]]
        assert len(where) >= 10
        assert set(where) == {pool}, stage


def test_every_documented_metric_is_there_and_moves(stopped):
    first, second, tags, _ = stopped
    page_of_metrics = (ROOT / "cluster/README.md").read_text().split("## What to watch")[1].split("## ")[0]
    documented = set(re.findall(r"`(ray_inpaint_encode_\w+)`", page_of_metrics))
    assert len(documented) == 5
    assert documented == second.keys()
    assert {name for name in documented if first[name] != second[name]} == documented
    assert tags >= {("outcome", "encoded"), ("size", "2"), *(("event", name) for name in MOVED)}
    stages = {value for tag, value in tags if tag == "stage"}
    for word in {*MOVED, *stages}:
        assert f"`{word}`" in page_of_metrics, word
    assert stages == {"fetch", "decode", "wait", "copy", "encode", "copy_back", "write"}


def test_a_rejected_pair_is_in_the_workers_logs(cluster, resumed, s3):
    job = whole_output(s3.uri("submitted-out"))["job"]["job"]
    lines = [line for line in cluster.worker_logs().splitlines() if '"pair rejected"' in line]
    (record,) = [json.loads(line) for line in lines]
    assert (record["job"], record["error"]) == (job, "decode.not_an_image")
    assert record["key"] == "000/000000"
    assert "node_id" in record


def test_the_other_jobs_and_every_exit_code(cluster, client, resumed, options, s3):
    """Submitted side by side; each ends with the code that its command has."""
    damaged = s3.uri("damaged-out")
    copy_damaged(s3.uri("submitted-out"), damaged)
    elsewhere = [one.replace(s3.uri("submitted-out"), "/dev/null/out") for one in options]
    jobs = {
        "bad-use": (2, f"python jobs/encode.py {' '.join(options)} --grow-mask-by 99"),
        "too-many": (3, f"python jobs/encode.py {' '.join(options)} --max-rejected 0"),
        "failed": (1, f"python jobs/encode.py {' '.join(elsewhere)}"),
        "no-cuda": (1, f"python jobs/encode.py {' '.join(options).replace('submitted-out', 'no-cuda-out')}"),
        "damaged": (4, f"python jobs/verify.py {damaged}"),
        "report": (0, f"python jobs/report.py {s3.uri('submitted-out')}"),
        "plan": (0, f"python jobs/plan.py {' '.join(options[:4])} --as-json"),
        "verify": (0, f"python jobs/verify.py {s3.uri('submitted-out')}"),
        "export": (0, f"python jobs/export.py {s3.uri('submitted-out')} --to webdataset --output {s3.uri('tars')}"),
        "benchmark": (0, "python -m jobs.benchmarks --quick --only write"),
    }
    for name, (_, entrypoint) in jobs.items():
        environment = {"working_dir": str(ROOT)}
        if name == "no-cuda":
            environment["env_vars"] = {"INPAINT_ENCODE_LOGICAL_GPUS": "0"}
        client.submit_job(entrypoint=entrypoint, submission_id=name, runtime_env=environment)
    for name, (code, _) in jobs.items():
        wait_for(lambda name=name: client.get_job_status(name).is_terminal(), 200, f"the end of {name}")
        assert client.get_job_status(name) == ("FAILED" if code else "SUCCEEDED"), client.get_job_logs(name)
        assert (client.get_job_info(name).driver_exit_code or 0) == code, client.get_job_logs(name)
    assert "the record is jobs/benchmarks/records/" in client.get_job_logs("benchmark")
    assert "--grow-mask-by" in client.get_job_logs("bad-use")
    said = " ".join(client.get_job_logs("no-cuda").split())
    assert f"a VAE worker was given 1 GPU on node {socket.gethostname()}, but torch finds no CUDA device" in said
    assert re.search(r"decode\.not_an_image +1$", client.get_job_logs("report"), re.MULTILINE)
    plan = client.get_job_logs("plan")
    assert json.loads(plan[plan.index("{\n") :])["pairs"] == PAIRS


def copy_damaged(output, other):
    """Copy an output, one of its data files by half."""
    damaged = data_files(output)[0]
    for path in files_of(output):
        data = storage.read(f"{output}/{path}").data
        storage.write(f"{other}/{path}", data[: len(data) // 2] if path == damaged else data)


def test_a_node_answers_the_image_s_health_check(cluster):
    (path,) = re.findall(r"http://127\.0\.0\.1:52365(/\S+)", (ROOT / "cluster/Dockerfile").read_text())
    assert b"success" in urllib.request.urlopen(f"http://127.0.0.1:{cluster.agent}{path}", timeout=10).read()


def test_a_failed_job_fails_its_submitter(cluster):
    assert submit(cluster, "refused", "jobs/encode.py", "--output", "nowhere").returncode == 1


@pytest.mark.parametrize("job", sorted(path.name for path in (ROOT / "jobs").glob("*.py")))
def test_every_job_has_help(job):
    done = subprocess.run([BIN / "python", ROOT / "jobs" / job, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "Usage" in done.stdout
