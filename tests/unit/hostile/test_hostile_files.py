"""Hostile files end in one sentence: no traceback, no crash, no hang and no memory of gigabytes."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import hostile
from tests.listed import ListedOutput
from tests.unit.sources.make_sources import noise, sample, write_tar


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_job, vae_folder) -> Path:
    """One good file of each kind, and a good output."""
    folder = tmp_path_factory.mktemp("hostile")
    lines = [
        {"image": f"{n:03}.png", "mask": f"{n:03}-m.png", "caption": f"no. {n}", "box": [n, 1.5]} for n in range(9)
    ]
    for line in lines:
        (folder / line["image"]).write_bytes(noise(line["image"], 100))
    (folder / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = "".join(f'{line["image"]},{line["mask"]},"{line["caption"]}"\n' for line in lines)
    (folder / "list.csv").write_text("image,mask,caption\n" + rows)
    pq.write_table(pa.Table.from_pylist(lines), folder / "list.parquet")
    write_tar(f"{folder}/list.tar", {**sample("a"), **sample("b" * 150), "a.txt": b"text"})
    shutil.copytree(vae_folder, folder / "vae")
    listed = ListedOutput(folder, make_job, 3, rejected=["000"])
    listed.list = folder / "list.jsonl"
    listed.source["pairs"] = str(listed.list)
    listed.encode()
    return folder


def check(folder: Path, kinds: list[str], count: int) -> Counter[str]:
    found = [*hostile.run_all(folder, kinds, count)]
    reasons = [(hostile.check(one), one["index"], one.get("file"), one["error"][-300:]) for one in found]
    wrong = [one for one in reasons if one[0]]
    assert not wrong, f"{len(wrong)} of {len(found)}: {wrong[:5]}"
    assert len(found) == count
    return Counter(f"{one['kind']} {one['code']}" for one in found)


def test_some_hostile_files(folder):
    outcomes = check(folder, ["source", "source", "source", "vae", "output", "output"], 72)
    assert outcomes.keys() >= {"source 0", "source 2", "vae 0", "vae 2", "output 0", "output 1"}, outcomes


@pytest.mark.long
@pytest.mark.parametrize("kind", ["source", "vae", "output"])
def test_2000_hostile_files(folder, kind):
    print(f"\n2,000 hostile files, kind {kind}: {dict(check(folder, [kind], 2_000))}")
