"""The built wheel: its files, and reading an output in a new environment with the base install only."""

import json
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.outputs import write_output

ROOT = Path(__file__).parents[2]


def run(*command: object, cwd: Path | None = None) -> str:
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build from a copy, because a build writes into its source folder."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in ("inpaint_encode", "jobs", "tests"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    out = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    run(*pip, "-w", out, source)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_has_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {"inpaint_encode", "inpaint_encode-0.2.0.dist-info"}
    package = ROOT / "inpaint_encode"
    ours = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    expected = {str(path.relative_to(ROOT)) for path in ours}
    assert {name for name in names if name.startswith("inpaint_encode/")} == expected
    assert {"inpaint_encode/py.typed", "inpaint_encode/demo/vae/config.json"} < expected
    assert any(name.endswith(".j2") for name in expected)


def test_the_extras_of_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as files:
        metadata = files.read("inpaint_encode-0.2.0.dist-info/METADATA").decode()
    lines = [line.removeprefix("Requires-Dist: ") for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    base = {line.partition(">")[0] for line in lines if "extra ==" not in line}
    assert base == {"botocore", "numpy", "obstore", "pyarrow", "tenacity", "torch", "urllib3"}
    extras = [line.removeprefix("Provides-Extra: ") for line in metadata.splitlines() if line.startswith("Provides")]
    assert set(extras) == {"job", "demo", "bench", "cluster", "all"}


READ = """
import json, sys
from torch.utils.data import DataLoader
from inpaint_encode import iter_rows, open_latents
uri = sys.argv[1]
ds = open_latents(uri)
stream = ds.for_diffusers(with_latents=False).stream(batch_size=2, shuffle=True)
streamed = sum(len(batch["key"]) for batch in DataLoader(stream, batch_size=None, num_workers=2))
print(json.dumps([len(ds), len(list(iter_rows(uri))), streamed, list(ds.for_comfyui()[0]["samples"].shape)]))
"""


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_base_install_reads_an_output(wheel, s3, tmp_path):
    """Prints the sizes of installed packages, and how long imports take."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    run(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel)
    packages = json.loads(run(python, "-m", "pip", "list", "--format", "json"))
    installed = {package["name"].lower() for package in packages}
    assert not {"ray", "diffusers", "s3fs", "pillow", "pydantic", "cyclopts", "rich"} & installed
    for uri in (str(tmp_path / "latents"), s3.uri("base-install", "latents")):
        write_output(uri, [[(4, 4)] * 5, [(4, 6)] * 3])
        assert json.loads(run(python, "-c", READ, uri, cwd=tmp_path)) == [8, 8, 8, [1, 4, 4, 4]]

    (site,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    sizes = {path.name: folder_bytes(path) for path in site.iterdir() if path.is_dir()}
    print(f"\nbase install: {sum(sizes.values()) / 1e6:,.0f} MB in {len(packages)} packages")
    for name, size in sorted(sizes.items(), key=lambda item: -item[1])[:12]:
        print(f"  {size / 1e6:8,.1f} MB  {name}")
    for code in (
        "import inpaint_encode",
        "from inpaint_encode import iter_rows",
        "from inpaint_encode import open_latents",
    ):
        times = [import_ms(python, code, tmp_path) for _ in range(3)]
        print(f"{code}: {min(times):,.0f} ms, best of 3")


def folder_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def import_ms(python: Path, code: str, cwd: Path) -> float:
    """Return milliseconds of the imports of ``code``, without those of Python's own start, by ``-X importtime``."""
    done = subprocess.run([python, "-X", "importtime", "-c", code], cwd=cwd, capture_output=True, text=True, check=True)
    lines = [line.split("|") for line in done.stderr.splitlines() if line.startswith("import time:")]
    start = next(index for index, (_, _, name) in enumerate(lines) if name.strip() == "site")
    return sum(int(own.partition(":")[2]) for own, _, _ in lines[start + 1 :]) / 1000
