"""Damaged files are decoded or rejected with a documented name, without a crash, a hang or too much memory."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from inpaint_encode.schema import DUPLICATE_KEY
from tests import mutations

ROOT = Path(__file__).parents[4]
PEAK_MB = 1_000
"""A valid header may declare 64 megapixels: 256 MB in the decoder and 192 MB as RGB levels."""


def documented() -> set[str]:
    """Return the names in the README's table of errors."""
    table = (ROOT / "README.md").read_text().partition("| error | what happened |")[2].partition("\n\n")[0]
    cells = re.findall(r"^\|([^|]+)\|", table, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([a-z]+\.[a-z_]+)`", cell)}


def written() -> set[str]:
    """Return the names that the package's code can raise."""
    found = set()
    for path in (ROOT / "inpaint_encode").rglob("*.py"):
        text = path.read_text()
        found |= set(re.findall(r'PairRejected\(\s*"([a-z]+\.[a-z_]+)"', text))
        found |= set(re.findall(r'Reject\([a-z0-9.\[\]]+, "([a-z]+\.[a-z_]+)"', text))
        for what in re.findall(r'PairRejected\(f"\{(?:stage|role)\}\.([a-z_]+)"', text):
            found |= {f"image.{what}", f"mask.{what}"}
    return found


def test_the_readme_documents_every_error_name():
    dynamic = {f"{stage}.{what}" for stage in ("image", "mask") for what in ("truncated", "corrupt")}
    assert written() | dynamic | {DUPLICATE_KEY} == documented()
    assert len(documented()) > 20


def decode(count: int) -> dict:
    command = [sys.executable, "-W", "ignore", "-m", "tests.mutations", str(count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def check(found: dict, count: int) -> None:
    for role in ("image", "mask"):
        assert sum(found[role].values()) == count
        assert found[role].keys() <= documented() | {"decoded"}
        assert found[role]["decoded"] > count / 20
    assert found["whole"].get("other", 0) == 0  # never partly black
    assert found["whole"]["rejected"] > count / 10
    assert found["slowest_s"] < 10
    assert found["peak_mb"] < PEAK_MB


def test_200_mutated_files():
    check(decode(200), 200)


@pytest.mark.long
def test_2000_mutated_files():
    found = decode(2_000)
    for role in ("image", "mask"):
        print(f"\n2,000 mutated files as {role}s:", ", ".join(f"{n:,} {name}" for name, n in found[role].items()))
    print(f"peak memory {found['peak_mb']:,} MB, of which {found['before_mb']:,} MB before the first; ", end="")
    print(f"4,000 tried in {found['seconds']:.1f} s of a core, the slowest in {found['slowest_s']:.2f} s")
    check(found, 2_000)


def test_a_seed_gives_the_same_files():
    assert list(mutations.mutated(18)) == list(mutations.mutated(18))
    assert len(set(mutations.mutated(90))) > 75
