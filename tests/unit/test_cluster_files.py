"""Every file of cluster/ against the schema of what reads it; a field spelled wrong in any of them is found."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import botocore.session
import jsonschema
import kubernetes_validate
import pytest
import yaml
from botocore.validate import ParamValidator
from click.testing import CliRunner

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
KUBERAY = CLUSTER / "kuberay"
CRDS = ROOT.parent / "shared/kuberay-crds"
OVERLAYS = ["eks", "gke", "eks-job", "gke-job"]
KUBERNETES = "1.32"


def tool(name: str) -> str:
    """A program that a package of the dev group brings."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return shutil.which(name, path=path) or pytest.fail(f"{name} is not installed; run `make venv`")


def run(*command: object) -> subprocess.CompletedProcess:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True)


# KubeRay


def rendered(folder: Path, overlay: str) -> list[dict]:
    done = run(tool("kubectl"), "kustomize", folder / overlay)
    assert done.returncode == 0, done.stderr
    return list(yaml.load_all(done.stdout, yaml.CSafeLoader))


def pods(value) -> list[dict]:
    """Every pod template in a manifest, wherever it is."""
    if isinstance(value, list):
        return [pod for one in value for pod in pods(one)]
    if not isinstance(value, dict):
        return []
    own = [value[name] for name in ("template", "submitterPodTemplate") if "spec" in value.get(name, {})]
    return own + [pod for one in value.values() for pod in pods(one)]


def check_kubernetes(manifest: dict) -> None:
    """By Kubernetes' own schemas: what is its own, and the pods in what is not."""
    if not manifest["apiVersion"].startswith("ray.io/"):
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    for pod in pods(manifest):
        kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod", **pod}, KUBERNETES, strict=True)


@cache
def crd_validator(kind: str) -> jsonschema.Draft202012Validator:
    crd = yaml.load((CRDS / f"ray.io_{kind.lower()}s.yaml").read_text(), yaml.CSafeLoader)
    (version,) = [one for one in crd["spec"]["versions"] if one["name"] == "v1"]
    return jsonschema.Draft202012Validator(strict(version["schema"]["openAPIV3Schema"]))


def strict(schema):
    """A cluster drops a field that it does not know; here it is an error."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: strict(value) for name, value in schema.items()}
    described = isinstance(closed.get("properties"), dict) and closed.get("type") == "object"
    if described and not closed.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed


def check_ray(manifest: dict) -> None:
    """By the definition that KubeRay installs; what every object has is Kubernetes' own, and not described there."""
    if not manifest["apiVersion"].startswith("ray.io/"):
        return
    about = {"metadata": {"name": manifest["metadata"].pop("name")}}
    assert not manifest["metadata"], "only a name is expected"
    crd_validator(manifest["kind"]).validate({**manifest, "metadata": {}})
    manifest |= about


SHARED_KINDS = ("ServiceAccount", "ConfigMap", "ConfigMap", "NetworkPolicy", "NetworkPolicy")

with_crds = pytest.mark.skipif(not CRDS.is_dir(), reason=f"{CRDS} is not there")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kuberay_manifests_are_kubernetes(overlay):
    manifests = rendered(KUBERAY, overlay)
    assert sorted(one["kind"] for one in manifests) == sorted(
        [*SHARED_KINDS, "RayJob" if overlay.endswith("-job") else "RayCluster"]
    )
    for manifest in manifests:
        check_kubernetes(manifest)
    assert sum(len(pods(one)) for one in manifests) == (5 if overlay.endswith("-job") else 4)


@with_crds
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kuberay_manifests_are_kuberay(overlay):
    for manifest in rendered(KUBERAY, overlay):
        check_ray(manifest)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_the_cluster_rests_on(overlay):
    """A head without work, GPU nodes that come from none, that take nothing but encoders, and whose labels say so."""
    (ray,) = [one for one in rendered(KUBERAY, overlay) if one["apiVersion"] == "ray.io/v1"]
    spec = ray["spec"].get("rayClusterSpec", ray["spec"])
    assert f"ray=={spec['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()
    assert spec["enableInTreeAutoscaling"]
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    data, *gpus = spec["workerGroupSpecs"]
    assert data["minReplicas"] == 0 < data["maxReplicas"]
    assert "nvidia.com/gpu" not in data["template"]["spec"]["containers"][0]["resources"]["limits"]
    for group in gpus:
        (container,) = group["template"]["spec"]["containers"]
        assert (group["minReplicas"], group["rayStartParams"]["num-cpus"]) == (0, "0")
        assert group["labels"]["ray.io/accelerator-type"] == group["groupName"].upper()
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert container["image"].endswith(":cuda")
        assert "spot" in str(group["template"]["spec"]["nodeSelector"])
    for pod in pods(spec):
        keys = {one["name"] for one in pod["spec"]["containers"][0]["env"]}
        assert not keys & {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
        assert pod["spec"]["serviceAccountName"] == "inpaint-encode"


API_TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_pod_can_do_more_than_it_needs(overlay):
    """Kubernetes' "restricted" profile, no writable image, and the API's token for the autoscaler only."""
    (ray,) = [one for one in rendered(KUBERAY, overlay) if one["apiVersion"] == "ray.io/v1"]
    autoscaler = ray["spec"].get("rayClusterSpec", ray["spec"])["autoscalerOptions"]
    containers = [autoscaler, *(one for pod in pods(ray) for one in pod["spec"]["containers"])]
    for container in containers:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {"/tmp", home_of(CLUSTER / "Dockerfile")} <= mounts, "Ray and the caches write there"
        assert (API_TOKEN in mounts) == (container is autoscaler)
    shared = {mount["name"] for mount in autoscaler["volumeMounts"]}
    for container in containers[1:]:
        assert not shared & {mount["name"] for mount in container["volumeMounts"]}, "a job's file would be its code"
    for pod in pods(ray):
        assert pod["metadata"]["labels"] == {"app": "inpaint-encode"}, "the network policies select it"
        assert pod["spec"]["automountServiceAccountToken"] is False
        context = pod["spec"]["securityContext"]
        assert context["runAsNonRoot"]
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert all("sizeLimit" in one["emptyDir"] for one in pod["spec"]["volumes"] if "emptyDir" in one)
        assert not pod["spec"].keys() & {"hostNetwork", "hostPID", "hostIPC"}
        mounted = {mount["name"] for one in [autoscaler, *pod["spec"]["containers"]] for mount in one["volumeMounts"]}
        assert {volume["name"] for volume in pod["spec"]["volumes"]} <= mounted


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_network_policies_admit_the_pods_and_the_operator_only(overlay):
    policies = {one["metadata"]["name"]: one for one in rendered(KUBERAY, overlay) if one["kind"] == "NetworkPolicy"}
    for policy in policies.values():
        assert policy["spec"]["podSelector"]["matchLabels"]["app"] == "inpaint-encode"
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        for rule in policy["spec"]["ingress"]:
            assert rule["from"], "an empty list admits everybody"
            assert all(peer["podSelector"]["matchLabels"] for peer in rule["from"])
        for rule in policy["spec"]["egress"]:
            assert rule.get("ports") or rule["to"][0]["podSelector"]["matchLabels"]
    open_ports = {
        port["port"]
        for rule in policies["inpaint-encode"]["spec"]["egress"]
        if "to" not in rule
        for port in rule["ports"]
    }
    assert open_ports == {53, 443}


def test_the_end_of_the_head_sends_sigterm_to_the_drivers_only(tmp_path):
    """The hook of the head's pod, with a folder in place of /proc that has three of this machine's processes."""
    (ray,) = [one for one in rendered(KUBERAY, "gke") if one["kind"] == "RayCluster"]
    head, *workers = [pod["spec"]["containers"][0] for pod in pods(ray)]
    assert not [worker for worker in workers if worker.get("lifecycle")], "SIGTERM drains a worker"
    shell, option, script = head["lifecycle"]["preStop"]["exec"]["command"]
    assert script.count("/proc/") == 1
    (tmp_path / "bin").mkdir()
    (tmp_path / "jobs").mkdir()
    code = "import time; print(flush=True); time.sleep(60)"
    names = ["bin/inpaint-encode", "jobs/encode.py", "bin/other"]
    started = []
    for name in names:
        (tmp_path / name).write_text(code)
        started.append(subprocess.Popen([sys.executable, tmp_path / name, "encode"], stdout=subprocess.PIPE))
        started[-1].stdout.readline()
        (tmp_path / "proc" / str(started[-1].pid)).mkdir(parents=True)
        (tmp_path / "proc" / str(started[-1].pid) / "cmdline").symlink_to(f"/proc/{started[-1].pid}/cmdline")
    try:
        command = [shell, option, script.replace("/proc/", f"{tmp_path}/proc/")]
        waiting = subprocess.Popen(command)
        assert [process.wait(30) for process in started[:2]] == [-signal.SIGTERM] * 2
        assert waiting.wait(30) == 0
        assert started[2].poll() is None
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_a_job_goes_when_it_ends():
    (job,) = [one for one in rendered(KUBERAY, "gke-job") if one["kind"] == "RayJob"]
    assert job["spec"]["shutdownAfterJobFinishes"]
    assert job["spec"]["entrypoint"].startswith("inpaint-encode encode --config /etc/inpaint-encode/job.toml")
    settings = {
        one["metadata"]["name"]: one["data"] for one in rendered(KUBERAY, "gke-job") if one["kind"] == "ConfigMap"
    }
    assert tomllib.loads(settings["inpaint-encode-job"]["job.toml"])["output"].startswith("s3://")
    assert settings["inpaint-encode-settings"]["AWS_ROLE_ARN"].startswith("arn:aws:iam::")


WRONG = [
    ("base/raycluster.yaml", "minReplicas: 0", "minReplica: 0", "ray"),
    ("base/raycluster.yaml", "terminationGracePeriodSeconds: 60", "terminationGracePeriod: 60", "kubernetes"),
    ("base/raycluster.yaml", "version: v2", "version: v3", "ray"),
    ("base/serviceaccount.yaml", "metadata:", "meta:", "kubernetes"),
    ("base/networkpolicy.yaml", "policyTypes", "policyType", "kubernetes"),
    ("base/raycluster.yaml", "readOnlyRootFilesystem", "readOnlyRootFileSystem", "kubernetes"),
    ("base/raycluster.yaml", "volumeMounts:", "volumeMount:", "ray"),
    ("job/rayjob.yaml", "submitterPodTemplate", "submitterTemplate", "ray"),
    ("base/kustomization.yaml", "resources:", "resource:", "kubernetes"),
    ("job/rayjob.yaml", "ttlSecondsAfterFinished: 600", 'ttlSecondsAfterFinished: "600"', "ray"),
    ("job/rayjob.yaml", "shutdownAfterJobFinishes", "shutdownAfterJobFinished", "ray"),
    ("job/kustomization.yaml", "fieldPath: spec", "fieldPaths: spec", "kubernetes"),
    ("gke/kustomization.yaml", "template/spec/nodeSelector", "template/spec/nodeSelectors", "kubernetes"),
    ("eks/kustomization.yaml", "operator: Exists", "operater: Exists", "kubernetes"),
    ("gke-job/kustomization.yaml", "components:", "component:", "kubernetes"),
    ("eks-job/kustomization.yaml", "- ../job", "- ../jobs", "kubernetes"),
]


@pytest.mark.parametrize(("file", "right", "wrong", "by"), WRONG, ids=[f"{row[0]}-{row[2]}" for row in WRONG])
def test_a_wrong_field_of_kuberay_is_found(tmp_path, file, right, wrong, by):
    if by == "ray" and not CRDS.is_dir():
        pytest.skip(f"{CRDS} is not there")
    shutil.copytree(KUBERAY, tmp_path / "kuberay")
    spoiled = tmp_path / "kuberay" / file
    assert right in spoiled.read_text()
    spoiled.write_text(spoiled.read_text().replace(right, wrong))
    cloud = "eks" if file.startswith("eks") else "gke"
    check = check_ray if by == "ray" else check_kubernetes
    with pytest.raises((AssertionError, jsonschema.ValidationError)):
        for manifest in rendered(tmp_path / "kuberay", f"{cloud}-job"):
            check(manifest)


# The image


BASE_IMAGE = re.compile(r"FROM python:3\.11\.\d+-slim-bookworm@sha256:[0-9a-f]{64}")


def lint(dockerfile: Path) -> subprocess.CompletedProcess:
    return run(tool("hadolint"), dockerfile)


def test_the_dockerfile_is_clean():
    done = lint(CLUSTER / "Dockerfile")
    assert done.returncode == 0, done.stdout
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    assert any(line.startswith("HEALTHCHECK") for line in lines)
    assert [line for line in lines if line.startswith("USER")] == ["USER 1000"]
    assert home_of(CLUSTER / "Dockerfile") == "/home/encode"
    assert [line for line in lines if line.startswith("FROM")] == [line for line in lines if BASE_IMAGE.fullmatch(line)]
    for line in lines:
        if line.startswith("COPY"):
            *sources, _ = line.split()[1:]
            assert all((ROOT / source).exists() for source in sources), line
    (torch,) = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch==")]
    assert torch.count("==") == 1


def home_of(dockerfile: Path) -> str:
    """Where Ray mounts what is below ``~`` in file_mounts: HOME as the image's own environment has it, and no other."""
    text = dockerfile.read_text()
    (home,) = re.findall(r"^ENV (?:.* )?HOME=(\S+)", text, re.MULTILINE)
    assert f"useradd --create-home --home-dir {home} --uid 1000" in text
    return home


def test_an_image_without_a_home_is_found(tmp_path):
    spoiled = tmp_path / "Dockerfile"
    spoiled.write_text((CLUSTER / "Dockerfile").read_text().replace("ENV HOME=/home/encode", "ENV"))
    with pytest.raises(ValueError, match="not enough values"):
        home_of(spoiled)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("FROM python:3.11.16-slim-bookworm", "FROM python:latest #"),
        ("HEALTHCHECK", "HEALTCHECK"),
        ("USER 1000", "USER root"),
    ],
)
def test_a_wrong_line_of_the_dockerfile_is_found(tmp_path, right, wrong):
    spoiled = tmp_path / "Dockerfile"
    spoiled.write_text((CLUSTER / "Dockerfile").read_text().replace(right, wrong))
    assert lint(spoiled).returncode != 0


# `ray up`


def prepared(text: str) -> dict:
    """What `ray up` makes of a file before it asks the cloud for anything, or its refusal."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.load(text, yaml.CSafeLoader))
    validate_config(config)
    return config


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_ray_has_the_cloud_s_library(cloud):
    """What `ray up` and the head import for it are in the extra ``cluster``."""
    from ray.autoscaler._private.providers import _NODE_PROVIDERS

    for package in ("boto3", "googleapiclient"):
        pytest.importorskip(package, reason=f"{package} is not installed; it comes with the extra `cluster`")
    assert _NODE_PROVIDERS[cloud]({"type": cloud}).__name__ == f"{cloud.upper()}NodeProvider"


GCP_NODE = {
    "machineType": str,
    "metadata": {"items": list},
    "scheduling": {
        "provisioningModel": ("SPOT", "STANDARD"),
        "onHostMaintenance": ("TERMINATE", "MIGRATE"),
        "instanceTerminationAction": ("DELETE", "STOP"),
    },
    "disks": list,
    "serviceAccounts": list,
}
"""What Compute Engine calls the fields that gcp.yaml has, and which words they take."""

GCP_LISTED = {
    "disks": {
        "boot": bool,
        "autoDelete": bool,
        "type": ("PERSISTENT",),
        "initializeParams": {"diskSizeGb": int, "sourceImage": str},
    },
    "serviceAccounts": {"email": str, "scopes": list},
    "items": {"key": str, "value": str},
}
"""Those of their entries, where they are lists."""


def check_compute_engine(config: dict) -> None:
    """Ray hands a node's description on as it is; the API refuses what it does not know."""
    for kind in config["available_node_types"].values():
        check_fields(kind["node_config"], GCP_NODE)


def check_fields(value: dict, known: dict) -> None:
    for name, given in value.items():
        assert name in known, f"Compute Engine knows no {name}"
        check_value(name, given, known[name])


def check_value(name: str, given, kind) -> None:
    if isinstance(kind, dict):
        check_fields(given, kind)
    elif isinstance(kind, tuple):
        assert given in kind, f"{name}: {given}"
    else:
        assert isinstance(given, kind), f"{name}: {given}"
    for entry in given if name in GCP_LISTED else ():
        check_fields(entry, GCP_LISTED[name])


def test_compute_engine_takes_the_nodes():
    config = prepared((CLUSTER / "gcp.yaml").read_text())
    check_compute_engine(config)
    gpu = config["available_node_types"]["l4"]
    assert {"key": "install-nvidia-driver", "value": "True"} in gpu["node_config"]["metadata"]["items"]
    assert "nvidia-smi" in gpu["initialization_commands"][0]


def check_instances(config: dict) -> None:
    """EC2 takes every node's description: Ray hands it on as it is."""
    model = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for node in config["available_node_types"].values():
        report = ParamValidator().validate({**node["node_config"], "MinCount": 1, "MaxCount": 1}, model)
        assert not report.has_errors(), report.generate_report()


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_ray_up_takes_the_file(cloud):
    config = prepared((CLUSTER / f"{cloud}.yaml").read_text())
    kinds = config["available_node_types"]
    assert kinds["head"]["resources"] == {"CPU": 0}
    assert (kinds["l4"]["min_workers"], kinds["l4"]["resources"]) == (0, {"CPU": 0, "GPU": 1})
    assert kinds["data"]["min_workers"] == 0
    assert "spot" in str(kinds["l4"]["node_config"]).lower()
    assert config["idle_timeout_minutes"] > 0
    assert "SECRET" not in str(config)
    for command in [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]:
        check_ray_start(command)


def test_ec2_takes_the_nodes():
    check_instances(prepared((CLUSTER / "aws.yaml").read_text()))


@pytest.mark.parametrize(
    ("cloud", "right", "wrong"),
    [
        ("aws", "max_workers: 16", "max_worker: 16"),
        ("aws", "IamInstanceProfile", "IAMInstanceProfile"),
        ("aws", "--metrics-export-port", "--metric-export-port"),
        ("gcp", "idle_timeout_minutes", "idle_timeout_minute"),
        ("gcp", "worker_image", "workers_image"),
        ("gcp", "provisioningModel", "provisionningModel"),
        ("gcp", "provisioningModel: SPOT", "provisioningModel: SPOTS"),
        ("gcp", "sourceImage", "sourceImages"),
        ("gcp", "install-nvidia-driver, value", "install-nvidia-driver, values"),
        ("gcp", "--autoscaling-config", "--autoscaler-config"),
    ],
)
def test_a_wrong_field_of_ray_up_is_found(cloud, right, wrong):
    text = (CLUSTER / f"{cloud}.yaml").read_text()
    assert right in text
    with pytest.raises((AssertionError, jsonschema.ValidationError)):
        config = prepared(text.replace(right, wrong))
        (check_instances if cloud == "aws" else check_compute_engine)(config)
        for command in [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]:
            check_ray_start(command)


def check_ray_start(command: str) -> None:
    """The options of ``ray start`` in a shell command exist; with --help after them, nothing is started."""
    from ray.scripts.scripts import start

    if "ray start " in command:
        options = command.split("ray start ", 1)[1].split()
        parsed = CliRunner().invoke(start, [*options, "--help"])
        unknown = [option for option in options if option.split("=")[0] not in known_options(start)]
        assert parsed.exit_code == 0
        assert not unknown, f"ray start knows no {unknown}"


def known_options(command) -> set[str]:
    return {name for parameter in command.params for name in parameter.opts}


# Slurm


def symmetric_run_options(text: str) -> list[str]:
    words = text.replace("\\\n", " ").split(" ray symmetric-run ", 1)[1].split(" -- ", 1)[0].split()
    return [word for word in words if word.startswith("--")]


def check_slurm(script: Path) -> None:
    from ray.scripts.scripts import start
    from ray.scripts.symmetric_run import symmetric_run

    assert run("bash", "-n", script).returncode == 0
    assert 'srun --cpus-per-task="${SLURM_CPUS_PER_TASK}" ' in script.read_text(), "srun inherits it no longer"
    known = known_options(start) | known_options(symmetric_run)
    assert set(symmetric_run_options(script.read_text())) <= known - {
        "--head",
        "--block",
        "--port",
        "--node-ip-address",
    }


def test_the_slurm_script_starts_ray_as_it_can_be_started():
    check_slurm(CLUSTER / "slurm.sh")


@pytest.mark.parametrize(
    ("right", "wrong"), [("--num-gpus", "--gpus"), ("srun --cpus-per-task", "srun --cpus"), ('"${1:?', '"${1:?"')]
)
def test_a_wrong_option_of_the_slurm_script_is_found(tmp_path, right, wrong):
    spoiled = tmp_path / "slurm.sh"
    spoiled.write_text((CLUSTER / "slurm.sh").read_text().replace(right, wrong))
    with pytest.raises(AssertionError):
        check_slurm(spoiled)


# Tokens


@pytest.mark.parametrize("file", ["README.md", "gcp.yaml", "slurm.sh"])
def test_what_writes_a_token_writes_it_for_its_user_only(file):
    """Ray's own command writes its token with the umask of the shell."""
    text = (CLUSTER / file).read_text()
    made = re.findall(r".*(?:get-auth-token --generate|nohup bash -c|mktemp).*", text)
    assert made
    assert "umask 077\n" in text or all("umask 077;" in line for line in made), made


# The page


def test_the_three_first_paths_take_five_commands_at_most():
    sections = (CLUSTER / "README.md").read_text().split("\n## ")[1:4]
    assert [section.split("\n")[0] for section in sections] == ["A laptop", "One machine with a GPU", "KubeRay"]
    for section in sections:
        for block in section.split("```")[1::2]:
            lines = block.replace("\\\n", " ").strip().splitlines()
            assert 1 <= len(lines) <= 5
            assert not [line for line in lines if "&&" in line and not line.startswith("kubectl wait")]
        for file in re.findall(r"\b(?:cluster|jobs)/[\w./-]+", section):
            assert (ROOT / file).exists(), file
