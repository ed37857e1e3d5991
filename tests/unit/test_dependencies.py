"""The pinned versions: above the minimum versions of pyproject.toml, and the same in the image, there with hashes."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CUDA = ("torch", "triton", "cuda-", "nvidia-")
"""Beginnings of the names in requirements-hashed-cuda.txt."""


def requirements() -> list[Requirement]:
    extras = [one for group in PROJECT["optional-dependencies"].values() for one in group]
    return [Requirement(one) for one in [*PROJECT["dependencies"], *extras] if not one.startswith("inpaint-encode")]


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def hashed(name: str) -> dict[str, tuple[str, list[str]]]:
    """Version and hashes of each package in a requirements file of the image."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    found = {}
    for entry in "\n".join(lines).replace("\\\n", "").splitlines():
        package, *hashes = re.split(r"\s+--hash=sha256:", entry.strip())
        name, _, version = package.partition("==")
        found[name] = version, hashes
    return found


def test_constraints_have_versions_and_nothing_else():
    """With one hash in it, ``pip install -c constraints.txt -e .`` fails."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.+]+", line)] == []


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_pinned_versions_are_above_the_minimum(requirement):
    assert requirement.specifier.contains(pinned()[canonicalize_name(requirement.name)])


@pytest.mark.parametrize(
    ("package", "fixed"),
    [
        ("urllib3", "2.7.0"),
        ("aiohttp", "3.14.4"),
        ("diffusers", "0.38.0"),
        ("jinja2", "3.1.6"),
        ("pillow", "12.3.0"),
        ("pyarrow", "14.0.1"),
        ("ray", "2.56.0"),
        ("torch", "2.10.0"),
    ],
)
def test_the_job_excludes_versions_with_known_vulnerabilities(package, fixed):
    major, minor, *rest = fixed.split(".")
    before = f"{major}.{int(minor) - 1}.99" if rest == ["0"] else f"{major}.{minor}.{int(rest[0]) - 1}"
    asked = [one for one in requirements() if canonicalize_name(one.name) == package]
    assert asked
    assert not all(one.specifier.contains(before) for one in asked)


def test_the_image_installs_what_is_pinned_each_by_its_hash():
    image, cuda = hashed("requirements-hashed.txt"), hashed("requirements-hashed-cuda.txt")
    for name, (version, hashes) in {**image, **cuda}.items():
        assert hashes, name
        assert all(re.fullmatch(r"[0-9a-f]{64}", one) for one in hashes), name
        if name in image or name == "torch":
            assert pinned()[name] == version, name
    assert [name for name in cuda if not name.startswith(CUDA)] == []
    assert [name for name in image if name.startswith(CUDA)] == []
    wanted = [*PROJECT["dependencies"]]
    for extra in ("job", "cluster"):
        wanted += [one for one in PROJECT["optional-dependencies"][extra] if not one.startswith("inpaint-encode")]
    assert {canonicalize_name(Requirement(one).name) for one in wanted} <= image.keys() | cuda.keys()
    assert "setuptools" in image, "the package itself is built without a download"


@pytest.mark.parametrize("name", ["constraints.txt", "requirements-hashed.txt", "requirements-hashed-cuda.txt"])
def test_no_file_names_a_registry(name):
    assert not re.search(r"https?:|index-url|find-links|file:", (ROOT / name).read_text())
