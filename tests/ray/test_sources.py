"""Whole jobs on other layouts than two prefixes: several masks an image, captions, Parquet, tars, drawn masks."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data
import torch
from PIL import Image

from inpaint_encode import iter_rows
from inpaint_encode.core.transform import grow_mask
from inpaint_encode.errors import UsageError
from inpaint_encode.job.pipeline import run_job
from inpaint_encode.settings import VerifyOptions
from inpaint_encode.sources.random_masks import RandomMask
from inpaint_encode.stores import storage
from inpaint_encode.tools.verify.pipeline import verify_output
from tests.outputs import data_files, whole_output
from tests.unit.sources.make_sources import write_tar

IMAGES, MASKS = 5, 8


def png(levels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    return file.getvalue()


def write_png(uri: str, levels: np.ndarray) -> None:
    storage.write(uri, png(levels))


def write_image(prefix: str, image: int, masks: list[str], rng: np.random.Generator) -> None:
    height, width = rng.integers(24, 64, 2)
    write_png(f"{prefix}/{image}.png", rng.integers(0, 256, (height, width, 3), np.uint8))
    for name in masks:
        write_png(f"{prefix}/{name}", rng.choice(np.uint8([0, 255]), (height, width)))


def verified(output: str):
    verdict = verify_output(VerifyOptions(output=output, sample=4), lambda _: None)
    assert [(one.check, one.sentence) for one in verdict.problems] == []
    verdict.check_complete()


def test_an_image_with_eight_masks_is_fetched_once(s3, ray_cluster, make_job, display):
    prefix, output, rng = s3.uri("masks-in"), s3.uri("masks-out"), np.random.default_rng(1)
    for image in range(IMAGES):
        write_image(prefix, image, [f"{image}_mask{n:03d}.png" for n in range(MASKS)], rng)
    job = make_job(prefix, "", output, mask_pattern="{stem}_mask{n}.png", chunk_rows=20)
    report = run_job(job, display)
    counters = report["this_run"]["counters"]
    assert (report["encoded"], report["files"]) == (IMAGES * MASKS, 3)
    assert (counters["images_decoded"], counters["objects_fetched"]) == (IMAGES, IMAGES * (MASKS + 1))
    assert (report["unpaired_images"], report["unpaired_masks"], report["ignored_files"]) == (0, 0, 0)
    rows = ray.data.read_parquet(output, file_extensions=["parquet"]).take_all()
    keys = {row["key"]: (row["image_uri"], row["mask_uri"], row["mask_index"]) for row in rows}
    assert keys == {
        f"{image}_mask{n:03d}": (f"{prefix}/{image}.png", f"{prefix}/{image}_mask{n:03d}.png", n)
        for image in range(IMAGES)
        for n in range(MASKS)
    }
    verified(output)
    with pytest.raises(UsageError, match="mask_pattern"):
        run_job(make_job(prefix, "", output, mask_pattern="{stem}_mask0{n}.png"), display)


def test_rows_have_the_captions_of_the_manifest(s3, ray_cluster, make_job, display):
    prefix, output, rng = s3.uri("list-in"), s3.uri("list-out"), np.random.default_rng(2)
    lines = []
    for image in range(IMAGES):
        write_image(prefix, image, [f"m/{image}-{n}.png" for n in range(2)], rng)
        lines += [
            {"image": f"{image}.png", "mask": f"{prefix}/m/{image}-{n}.png", "caption": f"{image}, {n}", "height": n}
            | {"tags": ["x"] * n, "split": None}
            for n in range(2)
        ]
    lines[4]["mask"] = "gone.png"
    write_lines(prefix, lines)
    job = make_job("", "", output, pairs=f"{prefix}/list.parquet", chunk_rows=4)
    report = run_job(job, display)
    assert (report["encoded"], report["rejected_by_error"]) == (9, {"fetch.not_found": 1})
    check_carried(output, [line for line in lines if line["mask"] != "gone.png"])
    verified(output)
    lines[0]["caption"] = "another"
    write_lines(prefix, lines)
    refreshed = run_job(job.model_copy(update={"run": job.run.model_copy(update={"refresh": True})}), display)
    assert refreshed["this_run"]["files"] == 1
    assert refreshed["this_run"]["counters"]["objects_fetched"] == 2
    check_carried(output, [line for line in lines if line["mask"] != "gone.png"])
    verified(output)


def write_lines(prefix: str, lines: list[dict]) -> None:
    types = [("image", pa.string()), ("mask", pa.string()), ("caption", pa.string()), ("height", pa.int16())]
    schema = pa.schema([*types, ("tags", pa.list_(pa.string())), ("split", pa.string())])
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(lines, schema), file)
    storage.write(f"{prefix}/list.parquet", file.getvalue())


def check_carried(output: str, lines: list[dict]) -> None:
    """By pyarrow file by file, types included, and by Ray, against what the manifest says."""
    names = ["caption", "height", "tags", "split"]
    expected = sorted(json.dumps([line[name] for name in names]) for line in lines)
    tables = [pq.read_table(io.BytesIO(storage.read(f"{output}/{path}").data)) for path in data_files(output)]
    assert {str(table.schema.field(name).type) for table in tables for name in ("caption", "split")} == {"string"}
    assert {table.schema.field("height").type for table in tables} == {pa.int16()}
    rows = [row for table in tables for row in table.select([*names, "image_version"]).to_pylist()]
    assert sorted(json.dumps([row[name] for name in names]) for row in rows) == expected
    assert all(row["image_version"] for row in rows)
    read = ray.data.read_parquet(output, file_extensions=["parquet"]).select_columns(["key", *names]).take_all()
    assert sorted(json.dumps([row[n] if n != "tags" else list(row[n]) for n in names]) for row in read) == expected
    assert {row["key"] for row in read} <= {f"{image}{n}" for image in range(IMAGES) for n in ("", "/1")}
    whole_output(output)


def rows_by_key(output: str) -> dict[str, dict]:
    return {row["key"]: row for row in iter_rows(output)}


def again(job, **run):
    return job.model_copy(update={"run": job.run.model_copy(update=run)})


def test_rgba_images_in_parquet(s3, ray_cluster, make_job, display):
    """Images are in the rows or in a file beside; one file is missing until the retry."""
    prefix, output, rng = s3.uri("rows-in"), s3.uri("rows-out"), np.random.default_rng(3)
    levels = rng.integers(0, 256, (12, 32, 40, 4), np.uint8)
    images = [{"bytes": png(one), "path": f"{number}.png"} for number, one in enumerate(levels)]
    images[2], images[9] = [{"bytes": None, "path": f"beside/{number}.png"} for number in (2, 9)]
    storage.write(f"{prefix}/data/beside/2.png", png(levels[2]))
    file = io.BytesIO()
    table = pa.table({"image": images, "caption": [f"of {number}" for number in range(12)]})
    pq.write_table(table, file, row_group_size=5)
    version = storage.write(f"{prefix}/data/train.parquet", file.getvalue())
    options = {"pairs": f"{prefix}/data", "mask_column": "image", "mask_channel": "alpha", "chunk_rows": 4}
    job = make_job("", "", output, **options)
    report = run_job(job, display)
    assert (report["encoded"], report["rejected_by_error"]) == (11, {"fetch.not_found": 1})
    assert report["this_run"]["counters"]["objects_fetched"] == 11
    storage.write(f"{prefix}/data/beside/9.png", png(levels[9]))
    retried = run_job(again(job, retry_rejected=True), display)
    assert (retried["encoded"], retried["this_run"]["counters"]["objects_fetched"]) == (12, 1)
    made = rows_by_key(output)
    for number, one in enumerate(levels):
        row = made[f"train/{number}"]
        grown = grow_mask(torch.from_numpy(one[..., 3] < 128).to(torch.uint8), 6).numpy()
        assert np.array_equal(row["noise_mask"][0], grown)
        assert (row["caption"], row["mask_uri"]) == (f"of {number}", row["image_uri"])
        assert (row["image_version"] == version) == (number not in (2, 9))
    assert made["train/7"]["image_uri"] == f"{prefix}/data/train.parquet#row=7&column=image"
    verified(output)


def test_tars_and_random_masks(s3, ray_cluster, make_job, display):
    """More masks per image are new pairs, drawn as in a first run."""
    prefix, output, rng = s3.uri("tars-in"), s3.uri("tars-out"), np.random.default_rng(4)
    levels = rng.integers(0, 256, (6, 32, 40, 3), np.uint8)
    for shard in range(2):
        members = {f"a/{number}.png": png(levels[number]) for number in range(shard, 6, 2)}
        write_tar(f"{prefix}/{shard}.tar", {**members, "a/1.json": b'{"n": 1}'})
    options = {"pairs": prefix, "mask_style": "brush", "mask_seed": 5}
    job = make_job("", "", output, **options, random_masks=2, chunk_rows=3)
    report = run_job(job, display)
    assert (report["encoded"], report["rejected"]) == (12, 0)
    assert report["this_run"]["counters"]["objects_fetched"] == 6
    more = make_job("", "", output, **options, random_masks=3, chunk_rows=5)
    assert run_job(more, display)["this_run"]["encoded"] == 6
    made = rows_by_key(output)
    assert len(made) == 18
    for key, row in made.items():
        drawn = RandomMask("brush", 5, key, row["mask_index"]).draw(32, 40) > 0
        assert np.array_equal(row["noise_mask"][0], grow_mask(torch.from_numpy(drawn).to(torch.uint8), 6).numpy())
        assert row["mask_uri"] == f"random:brush?seed=5&index={row['mask_index']}"
        assert row["json"] == ('{"n": 1}' if key.startswith("1/a/1") else None)
    verified(output)
    with pytest.raises(UsageError, match="mask_seed: 5 in the output, 0 now"):
        run_job(make_job("", "", output, pairs=prefix, random_masks=3, mask_style="brush"), display)
