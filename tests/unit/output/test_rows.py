"""Encoded pairs as rows: tensors in either layout, row groups, and a type that is not the output's."""

import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inpaint_encode.core.chunk import Reject
from inpaint_encode.errors import JobFailed
from inpaint_encode.output.parquet import parquet_file, read_data
from inpaint_encode.output.rows import rejects_table, row_groups, rows_table
from inpaint_encode.reader.output import TensorColumn
from inpaint_encode.schema import REJECTS, data_schema
from tests.metadata import row_metadata
from tests.rows import data_file, encoded_pair

METADATA = row_metadata(tile=False)


@pytest.mark.parametrize("encoding", ["tensor", "packed"])
def test_tensors_come_back_from_either_layout(encoding):
    mask = np.random.default_rng(0).integers(0, 2, (2, 8, 12), np.uint8)
    samples = np.arange(2 * 4 * 6, dtype=np.float16).reshape(2, 4, 2, 3)
    rows = [encoded_pair(str(index), samples[index], mask[index]) for index in range(2)]
    metadata = replace(METADATA, mask_encoding=encoding)
    read = read_data(data_file(rows, metadata), data_schema(metadata))
    for name, values in (("noise_mask", mask[:, None]), ("samples", samples)):
        column = read[name].chunk(0)
        assert np.array_equal([*TensorColumn(column)], values)
        assert np.array_equal([*TensorColumn(column[1:])], values[1:])
        assert [*TensorColumn(column[:0])] == []


@pytest.mark.parametrize("encoding", ["tensor", "packed"])
def test_a_row_group_has_eight_million_mask_pixels_at_most(encoding):
    mask = np.ones((1_000, 3_000), np.uint8)
    rows = [encoded_pair(key, np.zeros((4, 1, 1), np.float16), mask) for key in "abcde"]
    metadata = replace(METADATA, mask_encoding=encoding)
    footer = pq.read_metadata(io.BytesIO(data_file(rows, metadata)))
    assert [footer.row_group(at).num_rows for at in range(footer.num_row_groups)] == [2, 2, 1]


def test_a_chunk_without_rows_has_a_file():
    assert read_data(data_file([], METADATA), data_schema(METADATA)).num_rows == 0


@pytest.mark.parametrize("name", ["samples", "original_samples", "latent_mask"])
def test_values_of_another_type_than_the_outputs_are_an_error(name):
    """A worker that returns float32 for an output of float16 must not have its bytes reinterpreted."""
    metadata = replace(METADATA, also_original=True, latent_mask="comfyui")
    half = np.ones((4, 1, 1), np.float16)
    tensors = {"samples": half, "original_samples": half, "latent_mask": half[:1]}
    tensors[name] = tensors[name].astype(np.float32)
    row = encoded_pair("a", tensors.pop("samples"), np.ones((8, 8), np.uint8), **tensors)
    schema = data_schema(metadata)
    with pytest.raises(
        JobFailed,
        match=rf"a worker produced .*float.* for column {name}, but the output has .*halffloat.*; check that all nodes",
    ):
        parquet_file(row_groups(rows_table([row], schema), schema), schema)


def test_a_reject_names_its_stage():
    pair = encoded_pair("a", np.zeros((4, 1, 1)), np.zeros((8, 8), np.uint8)).pair
    table = rejects_table([Reject(pair, "mask.missing", "it is null")])
    assert table.schema == REJECTS
    assert table.to_pylist() == [
        {"key": "a", "image_uri": "s3://in/a.jpg", "mask_uri": "s3://in/a.png", "stage": "mask"}
        | {"error": "mask.missing", "message": "it is null"}
    ]
    assert rejects_table([]).equals(REJECTS.empty_table())


def test_extra_columns_follow_the_rows():
    rows = [encoded_pair(key, np.zeros((4, 1, 1), np.float16), np.zeros((8, 8), np.uint8)) for key in "ab"]
    own = [{"caption": "A"}, {"caption": None}]
    read = pq.read_table(io.BytesIO(data_file(rows, METADATA, own, pa.struct([("caption", pa.string())]))))
    assert read.select(["key", "caption"]).to_pylist() == [{"key": "a", "caption": "A"}, {"key": "b", "caption": None}]


def test_extra_columns_have_their_own_names_in_the_data_file():
    """``height`` is a column between the stages; the manifest's is another."""
    row = encoded_pair("a", np.zeros((1, 1, 1), np.float32), np.zeros((8, 8), np.uint8))
    own = [{"height": "tall", "a.b": 1}]
    data = data_file([row], row_metadata(samples_dtype="float32", tile=False), own, pa.array(own).type)
    assert pq.read_schema(io.BytesIO(data)).names[-2:] == ["height", "a.b"]
    assert pq.read_table(io.BytesIO(data)).select(["height", "a.b"]).to_pylist() == own
