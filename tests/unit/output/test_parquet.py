"""Receipts and files of the index whose values nobody writes are damaged."""

import pyarrow as pa
import pytest

from inpaint_encode.errors import JobFailed
from inpaint_encode.output.index_files import encode_index_file, read_index_file
from inpaint_encode.output.parquet import parquet_bytes, read_parquet
from inpaint_encode.schema import FILE_INDEX, KEY_INDEX, RECEIPT, UNIT_INDEX

VALUES = {
    **{"chunk": "000000-00001", "revision": 0, "hash": "h", "encoded": 3, "rejected": 1, "errors": [("image.size", 1)]},
    **{"data_bytes": 500, "version": "v", "rejects_version": "", "group_rows": [3], "group_bytes": [400]},
    **{"footer_bytes": 90, "key_hashes": bytes(24), "counters": [("batches", 1.0)], "fatal": None},
}


@pytest.mark.parametrize(
    "changes",
    [
        *({name: None} for name in RECEIPT.names[:9]),
        *({name: -1} for name in ("revision", "encoded", "rejected", "data_bytes", "footer_bytes")),
        {"chunk": "../../x"},
        {"chunk": "1"},
        {"errors": [("image.size", None)]},
        {"errors": [("image.size", -1)]},
        {"group_rows": [None]},
        {"group_rows": [-3]},
        {"footer_bytes": 501},
    ],
)
def test_receipts_with_wrong_values_are_damaged(changes):
    def read(values):
        return read_parquet("x", parquet_bytes(pa.Table.from_pylist([VALUES, values], RECEIPT)), RECEIPT)

    assert read(VALUES | dict.fromkeys(("group_rows", "footer_bytes", "key_hashes"))).num_rows == 2
    with pytest.raises(JobFailed, match=rf"^x is damaged \(column {next(iter(changes))} has .*--repair` removes it"):
        read(VALUES | changes)


@pytest.mark.parametrize("schema", [UNIT_INDEX, FILE_INDEX])
@pytest.mark.parametrize(
    "changes", [{"group_rows": None}, {"group_rows": [-1]}, {"footer_bytes": 10**6}, {"chunk": -1}]
)
def test_an_index_with_wrong_values_is_ignored(tmp_path, schema, changes):
    def read(values):
        table = pa.Table.from_pylist([VALUES | {"unit": 0, "chunk": 1} | values], schema)
        (tmp_path / "index").write_bytes(encode_index_file(table))
        return read_index_file(str(tmp_path / "index"), schema)

    assert read({}).num_rows == 1
    assert read(changes) is None


def test_an_index_of_keys_with_nulls_is_ignored(tmp_path):
    (tmp_path / "keys").write_bytes(
        encode_index_file(pa.table([pa.nulls(2, one.type) for one in KEY_INDEX], KEY_INDEX))
    )
    assert read_index_file(str(tmp_path / "keys"), KEY_INDEX) is None
