"""The README's recipes for other libraries: each reads an output, without Ray, as arrays by column and key.

``python -m tests.recipes FOLDER ARRAYS.npz`` runs all recipes and saves the arrays.
"""

import sys
from pathlib import Path

import numpy as np

COLUMNS = {"samples": np.float32, "noise_mask": np.uint8}
"""Tensor columns of the demo's output, with their stored types."""

Arrays = dict[str, dict[str, np.ndarray]]


def by_pyarrow(folder: str) -> Arrays:
    import pyarrow.parquet as pq

    table = pq.read_table(folder)
    keys = table["key"].to_pylist()
    return {
        name: {
            key: value["data"].values.to_numpy(zero_copy_only=False).reshape(value["shape"].as_py())
            for key, value in zip(keys, table[name], strict=True)
        }
        for name in COLUMNS
    }


def by_pandas(folder: str) -> Arrays:
    import pandas as pd

    frame = pd.read_parquet(folder).set_index("key")
    return {
        name: {key: value["data"].reshape(value["shape"]) for key, value in frame[name].items()} for name in COLUMNS
    }


def by_polars(folder: str) -> Arrays:
    import polars as pl

    frame = pl.read_parquet(f"{folder}/*.parquet")
    found = {}
    for name in COLUMNS:
        tensors = frame[name].ext.storage().struct
        data, shapes = tensors.field("data"), tensors.field("shape")
        found[name] = {
            key: values.to_numpy().reshape(shape.to_list())
            for key, values, shape in zip(frame["key"], data, shapes, strict=True)
        }
    return found


def by_duckdb(folder: str) -> Arrays:
    import duckdb

    found: Arrays = {}
    for name, dtype in COLUMNS.items():
        query = f"SELECT key, {name}.data AS data, {name}.shape AS shape FROM '{folder}/*.parquet'"
        rows = duckdb.sql(query).fetchnumpy()
        found[name] = {
            key: np.asarray(data, dtype).reshape(shape)
            for key, data, shape in zip(rows["key"], rows["data"], rows["shape"], strict=True)
        }
    return found


def by_datasets(folder: str) -> Arrays:
    from datasets import load_dataset

    cache = str(Path(folder).parent / "cache")
    rows = load_dataset("parquet", data_files=f"{folder}/*.parquet", split="train", cache_dir=cache)
    found: Arrays = {name: {} for name in COLUMNS}
    for row in rows.with_format("numpy"):
        for name, dtype in COLUMNS.items():
            found[name][str(row["key"])] = row[name]["data"].astype(dtype).reshape(row[name]["shape"])
    return found


READERS = {reader.__name__: reader for reader in (by_pyarrow, by_pandas, by_polars, by_duckdb, by_datasets)}


if __name__ == "__main__":
    arrays = {
        f"{reader}:{column}:{key}": array
        for reader, read in READERS.items()
        for column, by_key in read(sys.argv[1]).items()
        for key, array in by_key.items()
    }
    assert "ray" not in sys.modules
    np.savez(sys.argv[2], **arrays)
