"""What ``ray job submit --working-dir .`` takes along: the code, and nothing that is large or of this machine."""

import shutil
import zipfile
from pathlib import Path

from ray._private.runtime_env.packaging import create_package

ROOT = Path(__file__).parents[2]
NOT_WANTED = [
    ".venv/lib/python3.11/site-packages/torch.py",
    ".git/objects/pack",
    ".demo/output/chunk.parquet",
    "jobs/records/record.md",
    "data/0001.parquet",
    "vae/diffusion_pytorch_model.safetensors",
    "inpaint_encode/__pycache__/cli.pyc",
    ".mypy_cache/3.11/types.json",
]


def test_the_upload_is_the_code(tmp_path):
    folder, package = tmp_path / "tree", tmp_path / "package.zip"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("inpaint_encode", "jobs", "cluster"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / ".rayignore", folder)
    for path in NOT_WANTED:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(bytes(100_000))
    create_package(str(folder), package, include_gitignore=False)
    names = zipfile.ZipFile(package).namelist()
    assert {"inpaint_encode/cli.py", "jobs/encode.py", "jobs/recipes/laptop.toml"} <= set(names)
    assert [
        name for name in names if any(name.startswith(path.split("/")[0] + "/") for path in (".venv/", ".git/"))
    ] == []
    assert not set(NOT_WANTED) & set(names)
    assert package.stat().st_size < 2_000_000


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
