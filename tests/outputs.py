"""Outputs in tests: small ones without a job; every row as bytes; what is true of each that is finished."""

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import inpaint_encode.output.rows
from inpaint_encode.output.parquet import read_data
from inpaint_encode.schema import data_schema
from inpaint_encode.stores import storage
from tests.metadata import changed, row_metadata
from tests.rows import data_file, encoded_pair

PLAIN = row_metadata(samples_dtype="float32")
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


def write_output(uri: str, files: Sequence[Sequence[tuple[int, int]]], group: int = 3, **changes: object) -> list[dict]:
    """Write data files of random rows with these latents' sizes, at ratio 8, and return the rows.

    Args:
        uri: folder or prefix.
        files: of each the height and width of its rows' latents.
        group: rows of a row group.
        changes: other than `PLAIN`.
    """
    metadata, rng, written = changed(PLAIN, **changes), np.random.default_rng(0), []
    for number, sizes in enumerate(files):
        keys = [f"{number:02}/{index:03}" for index in range(len(sizes))]
        rows, masks, own = [], [], []
        for key, size in zip(keys, sizes, strict=True):
            samples = rng.normal(size=(4, *size)).astype(metadata.samples_dtype)
            masks.append(rng.integers(0, 2, (8 * size[0], 8 * size[1]), np.uint8))
            rows.append(encoded_pair(key, samples, masks[-1], image_uri=f"s3://b/{key}.png"))
            own.append({"caption": None if key.endswith("1") else f"a {key}", "score": rng.random()})
        with pytest.MonkeyPatch.context() as patch:
            pixels = max([64 * height * width for height, width in sizes] or [1])
            patch.setattr(inpaint_encode.output.rows, "ROW_GROUP_PIXELS", group * pixels)
            storage.write(f"{uri}/0a1b2c3d-{number:08d}.parquet", data_file(rows, metadata, own, OWN_COLUMNS))
        for row, mask, columns in zip(rows, masks, own, strict=True):
            values = {"key": row.pair.key, "image_uri": row.pair.image_uri, "mask_index": 0, "samples": row.samples}
            written.append({**values, "precision": "float32", "noise_mask": mask[None], **columns})
    return written


OWN_COLUMNS = pa.struct([("caption", pa.string()), ("score", pa.float64())])
