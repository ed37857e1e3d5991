"""Reading outputs in tests: every row as bytes, and what must be true of a finished output whatever befell it."""

import json

import pyarrow as pa
import pyarrow.parquet as pq

from inpaint_encode import rows, storage

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
        schema = rows.data_schema(PLAIN)
        for row in rows.read_data(data, schema).to_pylist():
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
