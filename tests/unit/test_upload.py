"""What ``ray job submit --working-dir .`` takes along: the code, and nothing that is large or of this machine."""

import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pathspec
import pytest
from ray._private.runtime_env.packaging import create_package

ROOT = Path(__file__).parents[2]
WANTED = {"inpaint_encode", "jobs", "cluster", "pyproject.toml", "constraints.txt", "Makefile", "README.md"}
WANTED |= {"CHANGELOG.md", "LICENSE", "SECURITY.md", ".gitignore", ".rayignore"}
WANTED |= {"requirements-hashed.txt", "requirements-hashed-cuda.txt"}
NOT_WANTED = [
    ".venv/lib/python3.11/site-packages/torch.py",
    ".git/objects/pack",
    ".demo/output/chunk.parquet",
    "jobs/benchmarks/records/record.md",
    "tests/golden/grow.npz",
    "photos/a/0001.jpg",
    "masks/README",
    "latents/_job.json",
    "data/0001.parquet",
    "data/0002.PNG",
    "data/pairs.csv",
    "data/shard-000.tar",
    "vae/diffusion_pytorch_model.safetensors",
    "inpaint_encode/__pycache__/cli.pyc",
    ".mypy_cache/3.11/types.json",
]
SECRETS = [
    ".env",
    ".env.production",
    ".envrc",
    "certificate.pem",
    "tls/server.KEY",
    "client.p12",
    "id_rsa",
    "keys/id_ed25519.pub",
    "credentials",
    "credentials.json",
    "application_default_credentials.json",
    ".git-credentials",
    "client_secret_123.apps.googleusercontent.com.json",
    "secrets.toml",
    "project-service-account.json",
    "gcp_service_account_prod.json",
    "project-1a2b3c-key.json",
    ".netrc",
    ".npmrc",
    ".pypirc",
    "hub.token",
    ".ray/auth_token",
    ".aws/config",
    ".kube/config",
    "staging.kubeconfig",
    "kubeconfig.yaml",
    ".config/gcloud/access_tokens.db",
    ".docker/config.json",
    ".huggingface/token",
    ".ssh/known_hosts",
    "terraform.tfstate.backup",
    "prod.tfvars",
]
SECRETS += [f"jobs/recipes/{name}" for name in SECRETS]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """This checkout as Ray packs it, with what people keep beside the code."""
    folder = tmp_path_factory.mktemp("upload")
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    )
    for path in listed.stdout.splitlines():
        if (ROOT / path).is_file():
            (folder / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, folder / "tree" / path)
    for path in NOT_WANTED + SECRETS:
        (folder / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "tree" / path).write_bytes(bytes(100_000))
    create_package(str(folder / "tree"), folder / "package.zip", include_gitignore=False)
    return folder / "package.zip"


def test_the_upload_is_the_code(package):
    names = zipfile.ZipFile(package).namelist()
    assert {"inpaint_encode/cli/main.py", "jobs/encode.py", "jobs/recipes/laptop.toml"} <= set(names)
    assert "inpaint_encode/demo/vae/diffusion_pytorch_model.safetensors" in names  # small, and the demo's own
    assert {name.split("/")[0] for name in names if not name.endswith("/")} == WANTED
    assert not set(NOT_WANTED) & set(names)


def test_the_upload_has_every_module(package):
    modules = {
        str(path.relative_to(ROOT)) for part in ("inpaint_encode", "jobs") for path in (ROOT / part).rglob("*.py")
    }
    assert modules - set(zipfile.ZipFile(package).namelist()) == set()


def test_the_upload_has_no_secrets(package):
    """The files that clouds, SSH, Kubernetes and the hubs write, at the top and beside the recipes."""
    assert set(SECRETS) & set(zipfile.ZipFile(package).namelist()) == set()


def test_the_image_has_no_secrets():
    """Docker reads the same syntax but for patterns without a slash, which it applies to the top folder only."""
    patterns = (ROOT / "cluster/Dockerfile.dockerignore").read_text().splitlines()
    ignored = pathspec.PathSpec.from_lines("gitignore", patterns)
    assert [path for path in SECRETS if not ignored.match_file(path)] == []
    kept = ["inpaint_encode/cli/main.py", "jobs/encode.py", "jobs/recipes/laptop.toml", "requirements-hashed.txt"]
    assert [path for path in kept if ignored.match_file(path)] == []
    ours = (ROOT / ".rayignore").read_text().partition("# Secrets")[2].splitlines()[1:]
    assert {f"**/{pattern}" for pattern in ours} <= set(patterns)


def test_the_upload_is_as_small_as_the_page_says(package):
    (kilobytes,) = re.findall(r"uploads some (\d+) KB", (ROOT / "cluster/README.md").read_text())
    size = package.stat().st_size / 1_000
    print(f"the upload has {size:.0f} KB")
    assert size == pytest.approx(int(kilobytes), rel=0.25)


def test_a_link_to_a_virtual_environment_is_none_either(tmp_path):
    """As one has it who shares it between checkouts; a pattern that ends in a slash would let it through."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/large").write_bytes(bytes(1_000))
    folder = tmp_path / "tree"
    folder.mkdir()
    shutil.copy(ROOT / ".rayignore", folder)
    (folder / ".venv").symlink_to(tmp_path / "elsewhere")
    (folder / "code.py").write_text("")
    create_package(str(folder), tmp_path / "package.zip", include_gitignore=False)
    assert [one for one in zipfile.ZipFile(tmp_path / "package.zip").namelist() if ".venv" in one] == []
