"""Tables of arrays, and the memory that they are made in."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from inpaint_encode.job.transfer import ENCODED, Room, fold, table_of, unfold
from inpaint_encode.output.parquet import data_groups, data_table, parquet_bytes, parquet_file, read_data
from inpaint_encode.reader.columns import TensorColumn
from inpaint_encode.schema import data_schema, pack_mask
from tests.metadata import row_metadata

SCHEMA = pa.schema([("name", pa.string()), ("bytes", pa.large_binary())])


def table(values, room=None):
    listed = [{"name": str(index), "bytes": value} for index, value in enumerate(values)]
    return table_of(listed, SCHEMA, {"bytes": room} if room else {})


def test_arrays_of_any_type_and_order_become_their_bytes():
    values = [np.arange(6, dtype=np.float16).reshape(2, 3), None, np.arange(24, dtype=np.uint8).reshape(4, 6)[:, ::2]]
    made = table(values)
    assert made["bytes"].to_pylist() == [None if value is None else value.tobytes() for value in values]
    assert made["name"].to_pylist() == ["0", "1", "2"]


def test_no_rows_make_an_empty_table():
    assert table([]).equals(SCHEMA.empty_table())


def test_room_is_used_again_only_when_nothing_holds_it():
    room = Room()
    first = table([np.full(1000, 1, np.uint8)], room)
    held = first["bytes"].chunk(0).buffers()[2]
    second = table([np.full(1000, 2, np.uint8)], room)
    assert first["bytes"][0].as_py() == b"\1" * 1000
    assert second["bytes"][0].as_py() == b"\2" * 1000
    del first
    where = second["bytes"].chunk(0).buffers()[2].address
    del second
    third = table([np.full(900, 3, np.uint8)], room)
    assert third["bytes"].chunk(0).buffers()[2].address == where
    assert held.to_pybytes() == b"\1" * 1000


def test_room_that_one_table_needed_is_given_back_after_a_small_one():
    room = Room(kept=1_000)
    for needed, kept in ((100_000, 150_000), (50_000, 150_000), (10, 0), (600, 900), (10, 900)):
        assert table([np.full(needed, 1, np.uint8)], room).num_rows == 1
        assert room.take(0).size == kept


def test_a_slice_or_a_scalar_holds_the_room_too():
    room = Room()
    value = table([np.full(64, 7, np.uint8)], room)["bytes"][0]
    table([np.full(64, 8, np.uint8)], room)
    assert value.as_py() == b"\7" * 64


def test_a_fold_is_undone_without_a_copy():
    work = {"chunk": 3, "generation": 0, "part": "p", "keep": False}
    made = table([np.full(100, index, np.uint8) for index in range(4)])
    row = fold(made, work, counters=[("fetch_s", 1.0)], fatal=None)
    back = unfold(row, SCHEMA)
    assert row.num_rows == 1
    assert back.equals(made)
    assert back["bytes"].chunk(0).buffers()[2].address == made["bytes"].chunk(0).buffers()[2].address


def test_tensors_come_back_from_either_layout():
    mask = np.random.default_rng(0).integers(0, 2, (2, 8, 12), np.uint8)
    samples = np.arange(2 * 4 * 6, dtype=np.float16).reshape(2, 4, 2, 3)
    encoded = [
        {"samples": one, "samples_shape": one.shape, "noise_mask": pack_mask(bits), "height": 8, "width": 12}
        for one, bits in zip(samples, mask, strict=True)
    ]
    for encoding in ("tensor", "packed"):
        schema = data_schema(row_metadata(mask_encoding=encoding, tile=False))
        data = parquet_bytes(data_table(table_of(encoded, ENCODED), schema))
        read = read_data(data, schema)
        assert np.array_equal([*TensorColumn(read["noise_mask"].chunk(0))], mask[:, None])
        assert np.array_equal([*TensorColumn(read["samples"].chunk(0))], samples)
        for name, values in (("noise_mask", mask[:, None]), ("samples", samples)):
            assert np.array_equal([*TensorColumn(read[name].chunk(0)[1:])], values[1:])
            assert [*TensorColumn(read[name].chunk(0)[:0])] == []


def test_a_file_is_the_same_a_row_group_at_a_time():
    """Of masks of 3,000,000 pixels two make a group, however they are stored; of no rows there is a file, too."""
    mask = pack_mask(np.ones(3_000_000, np.uint8))
    row = {"samples": np.zeros(4, np.float16), "samples_shape": [4, 1, 1], "noise_mask": mask}
    row |= {"height": 1_000, "width": 3_000}
    failed = dict.fromkeys(row) | {"error": "decode.corrupt"}
    encoded = table_of([failed, *[{**row, "key": key} for key in "abcde"]], ENCODED)
    for encoding in ("tensor", "packed"):
        schema = data_schema(row_metadata(mask_encoding=encoding, tile=False))
        streamed = parquet_file(data_groups(encoded, schema), schema)
        about = pq.read_metadata(pa.BufferReader(streamed))
        assert [about.row_group(at).num_rows for at in range(about.num_row_groups)] == [2, 2, 1]
        assert streamed == parquet_bytes(data_table(encoded, schema))
        nothing = parquet_file(data_groups(encoded.slice(0, 1), schema), schema)
        assert read_data(nothing, schema).num_rows == 0
