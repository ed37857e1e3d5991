"""Write the image's requirements with the SHA-256 of every wheel: ``make lock``, after a change of constraints.txt.

``uv pip compile`` resolves the extra ``cluster`` with the versions of constraints.txt, for the image's two platforms.
The hashes are those of PyPI. PyTorch and its CUDA libraries are in a file of their own: the image without CUDA has a
build of PyTorch that PyPI does not have.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PLATFORMS = ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28")
PYTHON = "3.11"
CUDA = ("torch", "triton", "cuda-", "nvidia-")
"""Names of PyTorch and of its CUDA libraries, or the beginnings of their names."""
HEADER = """\
# {what} Written by `make lock` (cluster/lock.py) from pyproject.toml and constraints.txt, with
# the SHA-256 of the wheels on PyPI for Python {python} on Linux, x86_64 and aarch64. cluster/Dockerfile installs
# it with `pip install --require-hashes --no-deps`.
"""
FILES = {
    "requirements-hashed.txt": "Packages of the image but PyTorch.",
    "requirements-hashed-cuda.txt": "PyTorch with CUDA.",
}


def resolve(platform: str) -> list[dict[str, Any]]:
    """Return the packages for a platform, each with its name, version and wheels."""
    with tempfile.TemporaryDirectory() as folder:
        lock = Path(folder) / "pylock.toml"
        options = ["--extra", "cluster", "-c", "constraints.txt", "--python-version", PYTHON]
        options += ["--python-platform", platform, "--no-build", "--format", "pylock.toml", "-q", "-o", str(lock)]
        command = ["uv", "--no-config", "pip", "compile", "pyproject.toml", *options]
        subprocess.run(command, cwd=ROOT, check=True)  # noqa: S603
        packages: list[dict[str, Any]] = tomllib.loads(lock.read_text())["packages"]
    return packages


def main() -> None:
    """Write both files."""
    hashes: dict[str, dict[str, set[str]]] = {name: {} for name in FILES}
    for platform in PLATFORMS:
        for package in resolve(platform):
            name, version = package["name"], package["version"]
            file = "requirements-hashed-cuda.txt" if name.startswith(CUDA) else "requirements-hashed.txt"
            if not package.get("wheels"):
                sys.exit(f"{name} {version} has no wheel for {platform}; the image builds nothing")
            found = hashes[file].setdefault(f"{name}=={version}", set())
            found |= {wheel["hashes"]["sha256"] for wheel in package["wheels"]}
    for file, pinned in hashes.items():
        lines = [
            " \\\n    ".join([pin, *(f"--hash=sha256:{one}" for one in sorted(pinned[pin]))]) for pin in sorted(pinned)
        ]
        (ROOT / file).write_text(HEADER.format(what=FILES[file], python=PYTHON) + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
