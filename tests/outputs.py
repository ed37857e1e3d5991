"""Outputs in tests: small ones without a job; every row as bytes; what is true of each that is finished."""

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inpaint_encode.job.transfer import ENCODED, table_of
from inpaint_encode.output import parquet
from inpaint_encode.output.parquet import data_table, parquet_bytes, read_data
from inpaint_encode.schema import EXTRA_COLUMNS, data_schema, pack_mask, with_extra_columns
from inpaint_encode.stores import storage

PLAIN = {"samples_dtype": "float32", "mask_encoding": "tensor", "tile": None}
"""What tests' rows are made by, unless they say otherwise."""


def files_of(output: str) -> list[str]:
    """Every path of an output, sorted."""
    return sorted(path for listed in storage.list_objects(output) for path in listed.paths)


def data_files(output: str) -> list[str]:
    return [path for path in files_of(output) if not path.startswith("_")]


def rows_of(output: str) -> dict[str, bytes]:
    """Every row by its key, as the bytes of all its columns; a key that comes twice is an error."""
    found = {}
    for path in data_files(output):
        data = storage.read(f"{output}/{path}").data
        schema = data_schema(PLAIN)
        for row in read_data(data, schema).to_pylist():
            assert row["key"] not in found, f"{row['key']} is there twice"
            found[row["key"]] = repr(row).encode()
    return found


def rejects_of(output: str) -> list[dict]:
    tables = [
        pq.read_table(pa.BufferReader(storage.read(f"{output}/{path}").data))
        for path in files_of(output)
        if path.startswith("_rejected/")
    ]
    return [row for table in tables for row in table.to_pylist()]


def whole_report(output: str) -> dict:
    """The report, which a run writes last."""
    return json.loads(storage.read(f"{output}/_report.json").data)


def whole_output(output: str) -> dict:
    """Return the report, after holding it against what is there: rows and rejects are disjoint and complete."""
    report = whole_report(output)
    keys, rejected = set(rows_of(output)), [row["key"] for row in rejects_of(output)]
    assert len(rejected) == len(set(rejected))
    assert not keys & set(rejected)
    assert report["encoded"] == len(keys)
    assert report["rejected"] == len(rejected)
    assert report["pairs"] == len(keys) + len(rejected)
    assert "_lease.json" not in files_of(output)
    return report


def write_output(uri: str, files: Sequence[Sequence[tuple[int, int]]], group: int = 3, **made_by: object) -> list[dict]:
    """Write data files of random rows with these latents' sizes, at ratio 8, and return the rows.

    Args:
        uri: folder or prefix.
        files: of each the height and width of its rows' latents.
        group: rows of a row group.
        made_by: other than `PLAIN`; ``scaling_factor`` and the like go to the footers.
    """
    made_by, rng, written = {**PLAIN, **made_by}, np.random.default_rng(0), []
    like = pa.schema([(EXTRA_COLUMNS, pa.struct([("caption", pa.string()), ("score", pa.float64())]))])
    for number, sizes in enumerate(files):
        made = [_random_row(f"{number:02}/{index:03}", size, made_by, rng) for index, size in enumerate(sizes)]
        encoded = table_of(made, with_extra_columns(ENCODED, like))
        table = data_table(encoded, data_schema(made_by, like))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                parquet, "_GROUP_PIXELS", group * max([64 * height * width for height, width in sizes] or [1])
            )
            storage.write(f"{uri}/0a1b2c3d-{number:08d}.parquet", parquet_bytes(table))
        written += made
    return [_as_read(row) for row in written]


def _random_row(key: str, size: tuple[int, int], made_by: dict, rng: np.random.Generator) -> dict:
    samples = rng.normal(size=(4, *size)).astype(made_by["samples_dtype"])
    mask = rng.integers(0, 2, (1, 8 * size[0], 8 * size[1]), np.uint8)
    about = {"key": key, "image_uri": f"s3://b/{key}.png", "mask_index": 0, "height": mask.shape[1]}
    return {
        **about,
        "width": mask.shape[2],
        "samples": samples,
        "samples_shape": samples.shape,
        "noise_mask": pack_mask(mask),
        "mask": mask,
        "mask_coverage": float(mask.mean(dtype=np.float32)),
        "precision": "float32",
        EXTRA_COLUMNS: {"caption": None if key.endswith("1") else f"a {key}", "score": rng.random()},
    }


def _as_read(row: dict) -> dict:
    own = ("key", "image_uri", "mask_index", "samples", "precision")
    return {name: row[name] for name in own} | {"noise_mask": row["mask"]} | row[EXTRA_COLUMNS]
