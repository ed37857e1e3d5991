"""Files with extension types, in a process in which Ray has registered its own, which unpickle values."""

import json
import random
import re
import subprocess
import sys
import uuid
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.output.index_files import read_index_file
from inpaint_encode.output.lease import acquire_lease
from inpaint_encode.output.parquet import read_data, read_parquet
from inpaint_encode.output.state import read_row_groups
from inpaint_encode.parquet_file import (
    ARROW_TYPES,
    MAX_FOOTER_BYTES,
    TENSOR_TYPE,
    ParquetFile,
    UnsafeColumn,
    read_columns,
    read_footer,
    read_schema,
    read_table,
)
from inpaint_encode.reader import as_rows, iter_rows
from inpaint_encode.reader.dataset import open_latents
from inpaint_encode.schema import tensor_field
from inpaint_encode.settings import Source
from inpaint_encode.sources import PairReader, open_source
from inpaint_encode.sources.part_uris import row_uris
from inpaint_encode.stores import storage
from inpaint_encode.tools.export.destination import Destination
from inpaint_encode.tools.export.pipeline import EXPORT_WORK, export_data_file
from inpaint_encode.tools.inspect.info import read_info
from tests.outputs import write_output
from tests.pickled_parquet import PICKLED, encoded, extension, pickled_column, with_pickled

ROOT = Path(__file__).parents[2]
NESTINGS = [
    "",
    "list",
    "large_list",
    "fixed",
    "struct",
    "map",
    "list.struct",
    "struct.map",
    "map.fixed",
    "struct.struct",
]


@pytest.fixture
def canary(tmp_path) -> Path:
    return tmp_path / "code-ran"


class Spy(pa.ExtensionType):
    """A registered type that counts how often Arrow constructs it from a file."""

    constructed = 0

    def __init__(self, storage: pa.DataType) -> None:
        super().__init__(storage, "test.spy")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage, serialized):
        cls.constructed += 1
        return cls(storage)


@pytest.fixture(scope="module")
def spy():
    pa.register_extension_type(Spy(pa.null()))
    yield Spy
    pa.unregister_extension_type("test.spy")


@pytest.mark.parametrize("nesting", NESTINGS)
def test_arrow_alone_runs_the_code(canary, nesting):
    field, values = pickled_column(canary, 2, nesting)
    pq.read_table(pa.BufferReader(encoded(pa.table([values], pa.schema([field]))))).to_pylist()
    assert canary.exists()


@pytest.mark.parametrize("nesting", NESTINGS)
def test_no_value_of_an_unknown_type_is_read(canary, nesting):
    field, values = pickled_column(canary, 2, nesting)
    data = encoded(pa.table([values, pa.array(["a", "b"])], pa.schema([field, ("key", pa.string())])))
    file = ParquetFile(data)
    assert file.refused == {"x": PICKLED}
    for read in (
        file.read,
        lambda: file.read_row_group(0),
        lambda: list(file.iter_batches(1)),
        lambda: read_table(data, ["key", "x"]),
        lambda: read_columns(data, pa.schema([("x", pa.large_binary())])),
        lambda: read_schema(data),
    ):
        with pytest.raises(UnsafeColumn, match=f"column x has the extension type {PICKLED}, which is not read"):
            read()
    assert file.read(["key"]).to_pylist() == [{"key": "a"}, {"key": "b"}]
    assert not canary.exists()


def test_opening_a_file_constructs_no_extension_type(spy):
    fields = [
        extension("a", pa.string(), type_name="test.spy"),
        pa.field("b", pa.list_(pa.struct([extension("c", pa.int8(), type_name="test.spy")]))),
    ]
    data = encoded(pa.table([pa.nulls(1, field.type) for field in fields], pa.schema(fields)))
    spy.constructed = 0
    pq.read_metadata(pa.BufferReader(data))
    assert spy.constructed, "Arrow constructs the types of a footer"
    spy.constructed = 0
    metadata = read_footer(data)
    metadata.schema.to_arrow_schema()
    file = ParquetFile(data, metadata)
    assert file.refused == {"a": "test.spy", "b": "test.spy"}
    assert spy.constructed == 0


def test_ray_does_not_unpickle_the_metadata_of_a_type(canary):
    """With this variable, Ray unpickles it when Arrow opens a footer."""
    code = f"""
import pickle, sys
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq, ray.data
from inpaint_encode.parquet_file import ParquetFile
from inpaint_encode.schema import tensor_type
from tests.pickled_parquet import Payload, encoded
canary = Path({str(canary)!r})
metadata = {{"ARROW:extension:name": "{TENSOR_TYPE}", "ARROW:extension:metadata": pickle.dumps(Payload(canary), 0)}}
field = pa.field("x", tensor_type(pa.int64()), metadata=metadata)
data = encoded(pa.table([pa.nulls(1, field.type)], pa.schema([field])))
table = ParquetFile(data).read()
assert pa.ipc.open_stream(pa.ipc.new_stream(sink := pa.BufferOutputStream(), table.schema).close() or sink.getvalue())
assert not canary.exists(), "our reader ran code"
try:
    pq.read_metadata(pa.BufferReader(data))
except TypeError:
    pass
print(canary.exists())
"""
    environment = {"RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA": "1", "PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["True"]), done.stderr


def test_canonical_types_are_read_as_their_storage():
    number = uuid.uuid4()
    columns = {
        "u": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([number.bytes], pa.binary(16))),
        "j": pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": 1}'])),
        "b": pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1], pa.int8())),
        "o": pa.ExtensionArray.from_storage(pa.opaque(pa.int32(), "point", "somewhere"), pa.array([3], pa.int32())),
        "t": pa.ExtensionArray.from_storage(
            pa.fixed_shape_tensor(pa.int8(), [1, 2]), pa.array([[1, 2]], pa.list_(pa.int8(), 2))
        ),
    }
    nested = pa.StructArray.from_arrays([columns["u"]], ["u"])
    data = encoded(pa.table({**columns, "nested": nested, "map": pa.array([[("k", 1)]], pa.map_("string", "int8"))}))
    file = ParquetFile(data)
    (row,) = file.read().to_pylist()
    assert (file.refused, file.uuids) == ({}, {"u", "nested"})
    assert row == {
        **{"u": number.bytes, "j": '{"a": 1}', "b": 1, "o": 3, "t": [1, 2]},
        **{"nested": {"u": number.bytes}, "map": [("k", 1)]},
    }
    plain = ParquetFile(encoded(pa.table(columns), store_schema=False))
    assert "u" in plain.uuids
    assert plain.read(["u", "j"]).to_pylist() == [{"u": number.bytes, "j": '{"a": 1}'}]


def test_tensors_are_structs_that_ray_makes_tensors_of():
    field = tensor_field("samples", pa.float16())
    data = encoded(pa.table([pa.nulls(2, field.type)], pa.schema([field])))
    table = read_table(data)
    assert (table.schema, table.schema.field(0).metadata) == (pa.schema([field]), field.metadata)
    assert read_schema(data).equals(pa.schema([field]), check_metadata=True)


STORAGES = st.sampled_from([pa.int64(), pa.string(), pa.large_string(), pa.binary(), pa.float16(), pa.binary(16)])
NAMES = st.sampled_from(["test.spy", PICKLED, "arrow.json", "arrow.uuid", TENSOR_TYPE, "arrow.py_extension_type", ""])


def _nested(fields: st.SearchStrategy) -> st.SearchStrategy:
    return st.one_of(
        fields.map(pa.list_),
        fields.map(pa.large_list),
        fields.map(lambda field: pa.list_(field, 2)),
        fields.map(lambda field: pa.map_(pa.string(), field)),
        st.lists(fields, min_size=1, max_size=3).map(
            lambda found: pa.struct([field.with_name(f"f{at}") for at, field in enumerate(found)])
        ),
    )


def _fields(types: st.SearchStrategy) -> st.SearchStrategy:
    return st.builds(
        lambda type_, name: extension("x", type_, type_name=name) if name else pa.field("x", type_), types, NAMES
    )


FIELDS = _fields(st.recursive(STORAGES, lambda types: _nested(_fields(types)), max_leaves=6))


def names_in(field: pa.Field) -> set[str]:
    own = {field.metadata[b"ARROW:extension:name"].decode()} if field.metadata else set()
    children = (field.type.field(at) for at in range(field.type.num_fields))
    return own.union(*map(names_in, children)) if field.type.num_fields else own


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.lists(FIELDS, min_size=1, max_size=4), dictionary=st.booleans())
def test_any_schema(spy, fields, dictionary):
    fields = [field.with_name(f"c{at}") for at, field in enumerate(fields)]
    table = pa.table([pa.nulls(3, field.type) for field in fields], pa.schema(fields))
    data = encoded(table, use_dictionary=dictionary)
    spy.constructed = 0
    file = ParquetFile(data)
    unsafe = {field.name for field in fields if names_in(field) - ARROW_TYPES - {TENSOR_TYPE}}
    assert file.refused.keys() == unsafe
    readable = [field.name for field in fields if field.name not in unsafe]
    assert file.read(readable).to_pylist() == [dict.fromkeys(readable)] * 3
    assert "extension<" not in str(file.read(readable).schema)
    assert spy.constructed == 0


@pytest.mark.parametrize("place", ["image", "mask", "id"])
def test_a_list_whose_columns_are_pickled(tmp_path, canary, place):
    data = encoded(pa.table({"image": ["a.png"], "mask": ["b.png"], "id": ["1"]}))
    path = tmp_path / "list.parquet"
    path.write_bytes(with_pickled(data, place, canary))
    with pytest.raises(UsageError, match=rf"--pairs {path} is not valid parquet; .*column {place} has the extension"):
        open_source(Source(pairs=str(path), key_column="id"))
    assert not canary.exists()


@pytest.mark.parametrize("nesting", NESTINGS)
def test_other_columns_of_a_list_are_left_out_and_named(tmp_path, canary, caplog, nesting):
    data = encoded(pa.table({"image": ["a.png", "b.png"], "mask": ["c.png", "d.png"], "label": [1, 2]}))
    path = tmp_path / "list.parquet"
    path.write_bytes(with_pickled(data, "caption", canary, nesting))
    source = open_source(Source(pairs=str(path)))
    pairs = pa.concat_tables(batch.pairs for batch in source.batches({})).to_pylist()
    assert [pair["extra_columns"] for pair in pairs] == [{"label": 1}, {"label": 2}]
    assert [f"{path}: column caption is left out" in one.getMessage() for one in caplog.records] == [True]
    assert not canary.exists()


def test_uuids_and_json_of_a_list_are_copied_as_their_storage(tmp_path):
    number = uuid.uuid4()
    ids = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([number.bytes], pa.binary(16)))
    about = pa.ExtensionArray.from_storage(pa.json_(), pa.array(["{}"]))
    table = pa.table({"image": ["a.png"], "mask": ["c.png"], "id": ids, "about": about, "ids": pa.array([[1]])})
    (tmp_path / "list.parquet").write_bytes(encoded(table))
    source = open_source(Source(pairs=str(tmp_path / "list.parquet")))
    assert [field.type for field in source.extra_columns] == [pa.binary(16), pa.string(), pa.list_(pa.int64())]
    (batch,) = source.batches({})
    assert batch.pairs["extra_columns"].to_pylist() == [{"id": number.bytes, "about": "{}", "ids": [1]}]


@pytest.mark.parametrize("nesting", ["", "struct"])
def test_embedded_images_that_are_pickled(tmp_path, canary, nesting):
    data = encoded(pa.table({"mask": [b"1"] * 2}))
    path = tmp_path / "list.parquet"
    path.write_bytes(with_pickled(data, "image", canary, nesting))
    with pytest.raises(UsageError, match="column image has the extension type"):
        open_source(Source(pairs=str(path)))
    (uri,) = row_uris(str(path), pa.array([1]), "image").to_pylist()
    with pytest.raises(OSError, match="column image has the extension type"):
        PairReader().read(uri)
    assert not canary.exists()


@pytest.fixture(params=["caption", "precision", "samples", "key"])
def doctored(request, tmp_path, canary) -> tuple[str, Path]:
    """A shared output whose data file has a column of pickled values."""
    write_output(str(tmp_path / "out"), [[(4, 6), (5, 3)]])
    (path,) = (tmp_path / "out").glob("*.parquet")
    path.write_bytes(with_pickled(path.read_bytes(), request.param, canary))
    return str(tmp_path / "out"), path


REFUSED = rf"(?:has the extension type {PICKLED}|samples has the type large_binary, which is no tensor)"


def test_readers_of_a_doctored_output(doctored, canary):
    uri, path = doctored
    with pytest.raises(JobFailed, match=f"{path.name} is damaged .*{REFUSED}"):
        list(iter_rows(uri))
    with pytest.raises(JobFailed, match=REFUSED):
        open_latents(uri)[0]
    with pytest.raises(JobFailed, match=REFUSED):
        next(iter(open_latents(uri).stream()))
    assert not canary.exists()


def test_commands_on_a_doctored_output(doctored, tmp_path, canary):
    uri, path = doctored
    try:
        names = [column["name"] for column in read_info(uri)["columns"]]
    except JobFailed as error:
        assert re.search(REFUSED, str(error))
    else:
        assert {"key", "caption", "samples"} <= set(names)
    work = pa.Table.from_pylist([{"path": path.name, "version": storage.stat(str(path)).version}], EXPORT_WORK)
    with acquire_lease(f"{tmp_path}/exported/_lease.json", print) as lease:
        there = Destination(str(tmp_path / "exported"), lease.token)
        result = export_data_file(work, source=uri, destination=there, to="npz", has_frames=False)
    assert "has the extension type" in result["fatal"][0].as_py()
    assert not canary.exists()


def test_files_of_the_job(tmp_path, canary):
    schema = pa.schema([("key", pa.string()), ("n", pa.map_(pa.string(), pa.int64()))])
    data = with_pickled(encoded(pa.Table.from_pylist([{"key": "a", "n": []}], schema)), "n", canary, "struct")
    (tmp_path / "x.parquet").write_bytes(data)
    with pytest.raises(JobFailed, match=r"x.parquet is damaged .*column n has the extension type"):
        read_parquet("x.parquet", data, schema)
    with pytest.raises(UnsafeColumn):
        read_data(data, schema)
    assert read_index_file(str(tmp_path / "x.parquet"), schema) is None
    assert read_row_groups(data).group_rows == [1]
    assert not canary.exists()


def test_tables_of_others_are_checked_before_their_values_are_read(canary):
    field, values = pickled_column(canary, 1, "struct")
    table = pq.read_table(pa.BufferReader(encoded(pa.table([values], pa.schema([field])))))
    with pytest.raises(UnsafeColumn, match="column x has the extension type"):
        list(as_rows(table))
    assert not canary.exists()


@pytest.mark.parametrize(
    "code",
    [
        "import pyarrow.parquet as pq\npq.read_table('x')",
        "from pyarrow.parquet import ParquetFile\nParquetFile('x')",
        "import pyarrow.parquet\npyarrow.parquet.read_schema('x')",
        "import pyarrow.parquet as pq\npq.read_metadata('x')",
        "import pyarrow.dataset as ds\nds.dataset('x')",
        "from pyarrow import dataset\ndataset.dataset('x')",
        "import pyarrow.feather",
        "import pyarrow as pa\npa.ipc.open_stream(b'')",
        "import ray.data\nray.data.read_parquet('x')",
        "import pandas as pd\npd.read_parquet('x')",
        "import pickle\npickle.loads(b'')",
        "import torch\ntorch.load('x', weights_only=True)",
        "import numpy as np\nnp.load('x')",
    ],
)
def test_other_readers_are_lint_errors(code):
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--output-format=json",
        "--stdin-filename=inpaint_encode/x.py",
        "-",
    ]
    done = subprocess.run(command, input=f"{code}\n", cwd=ROOT, capture_output=True, text=True)
    assert "TID251" in {one["code"] for one in json.loads(done.stdout)}


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda data: data[:-1], "does not end as a Parquet file"),
        (lambda data: b"", "does not end as a Parquet file"),
        (lambda data: data[:-4] + b"PARE", "encrypted"),
        (lambda data: data[:-8] + (2**31).to_bytes(4, "little") + b"PAR1", "its footer has 2,147,483,648 bytes"),
        (lambda data: data.replace(b"ARROW:schema", b"ARROW:schemb"), ""),
    ],
)
def test_damaged_footers(damage, sentence):
    data = damage(encoded(pa.table({"a": [1]})))
    if sentence:
        with pytest.raises(pa.ArrowInvalid, match=sentence):
            read_footer(data)
    else:
        assert read_table(data).to_pylist() == [{"a": 1}]
    assert MAX_FOOTER_BYTES < 2**31


def test_column_chunks_of_damaged_footers():
    """pyarrow's objects for column chunks abort the process where Arrow raises an error."""
    rng = random.Random(0)
    data = encoded(pa.table({"a": ["x", None] * 20, "b": [["y", "z"], None] * 20}), row_group_size=16)
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    read = 0
    for _ in range(1_000):
        damaged = bytearray(data)
        damaged[rng.randrange(footer, len(data) - 8)] = rng.randrange(256)
        with suppress(pa.ArrowException, OSError):
            metadata = read_footer(bytes(damaged))
            groups = map(metadata.row_group, range(metadata.num_row_groups))
            read += sum(
                group.column(at).total_compressed_size > 0 for group in groups for at in range(group.num_columns)
            )
    assert read
