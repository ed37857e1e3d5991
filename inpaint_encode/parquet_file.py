"""Opens every Parquet file that is read: the sources, the outputs and the job's own files.

A Parquet file may say which Arrow types its columns had (``ARROW:schema`` in the footer). Arrow constructs these types
while it opens the file. Extension types that Python code registered, such as those of Ray, run that code, and some
unpickle the values: the file's author can run any code in the process that reads it. So `read_footer` renames the
key that names extension types, before Arrow sees it. All columns are then read as their storage, which runs no code.
A column with an extension type that is neither of Arrow nor our tensor cannot be read.

ruff's TID251 makes any other use of Arrow's readers an error; see ``pyproject.toml``.
"""

from __future__ import annotations

import base64
import binascii
import inspect
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .parquet_pages import PageCheck, PageLimits

TENSOR_TYPE = "ray.data.arrow_variable_shaped_tensor"
"""Extension type of the tensors in data files."""

ARROW_TYPES = frozenset(
    {
        "arrow.bool8",
        "arrow.fixed_shape_tensor",
        "arrow.json",
        "arrow.opaque",
        "arrow.parquet.variant",
        "arrow.timestamp_with_offset",
        "arrow.uuid",
        "arrow.variable_shape_tensor",
    }
)
"""Arrow's canonical extension types. ``arrow.py_extension_type`` of old versions of pyarrow is none: it unpickles."""

MAX_FOOTER_BYTES = 2**26
"""Largest footer that is parsed; parsing takes up to 200 times its size in memory."""

_MAGIC, _TAIL_BYTES = b"PAR1", 2**16
_SCHEMA_KEY, _RENAMED_SCHEMA_KEY = b"ARROW:schema", b"plain:schema"
_NAME_KEY, _RENAMED_NAME_KEY = b"ARROW:extension:name", b"plain:extension:name"
_METADATA_KEY = b"ARROW:extension:metadata"

_OPTIONS: Mapping[str, Any] = (
    {"arrow_extensions_enabled": False}
    if "arrow_extensions_enabled" in inspect.signature(pq.ParquetFile).parameters
    else {}
)
"""Parquet's own UUID, JSON and VARIANT are read as their storage; older versions of pyarrow always do this."""


class UnsafeColumn(pa.ArrowInvalid):  # type: ignore[misc] # an Any, since mypy does not follow pyarrow
    """A column has an extension type that is not read, since its values could run code."""


class ParquetFile:
    """A Parquet file whose tables never contain an extension type. A context manager.

    Args:
        source: a path, the file's bytes, or a seekable file.
        metadata: its footer, if `read_footer` has read it before; by default, it is read now.
        check_pages: check all pages against the limits of each read, see `inpaint_encode.parquet_pages`.
        options: of `pyarrow.parquet.ParquetFile`.

    Raises:
        pa.ArrowInvalid: the file is damaged.
        OSError: the store's error.
    """

    metadata: pq.FileMetaData
    schema: pa.Schema
    """The columns, with the storage types of extension types."""
    refused: Mapping[str, str]
    """Columns that cannot be read, with their extension types."""

    def __init__(
        self, source: Any, metadata: pq.FileMetaData | None = None, *, check_pages: bool = False, **options: Any
    ) -> None:
        self.metadata, self._source = metadata or read_footer(source), source
        in_memory = isinstance(source, (bytes, pa.Buffer))
        self._pages: PageCheck | None = None
        if check_pages:
            opened: Any = PageCheck(io.BytesIO(source) if in_memory else source, self.metadata)
            self._pages = opened
            if in_memory:
                options["pre_buffer"] = False  # threads would only wait for each other
        else:
            opened = pa.BufferReader(source) if in_memory else source
        self._file = pq.ParquetFile(opened, metadata=self.metadata, **_OPTIONS, **options)
        schema = self._file.schema_arrow
        types: dict[str, set[str]] = {}
        for field in schema:
            types.setdefault(field.name, set()).update(_extension_types(field))
        refused = {name: sorted(found - ARROW_TYPES - {TENSOR_TYPE}) for name, found in types.items()}
        self.refused = {name: found[0] for name, found in refused.items() if found}
        self.schema = pa.schema([_without_extension(field) for field in schema], schema.metadata)
        self._types = types

    def __enter__(self) -> ParquetFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @cached_property
    def uuids(self) -> frozenset[str]:
        """Columns of ``arrow.uuid``, or of lists or structs of it, without other bytes; the storage is 16 bytes."""
        leaves = map(self.metadata.schema.column, range(self.metadata.num_columns))
        roots = {leaf.path.partition(".")[0] for leaf in leaves if leaf.logical_type.type == "UUID"}
        roots |= {name for name, found in self._types.items() if found == {"arrow.uuid"}}
        return frozenset(one.name for one in self.schema if one.name in roots and {*_binary_widths(one.type)} == {16})

    def with_dictionaries(self, column: str) -> ParquetFile:
        """Return the file, opened once more; it reads the strings and bytes of a column as dictionaries."""
        paths = [path for path in leaf_paths(self.metadata) if f"{path}.".startswith(f"{column}.")]
        return ParquetFile(self._source, self.metadata, check_pages=True, pre_buffer=True, read_dictionary=paths)

    def check_readable(self, columns: Sequence[str] | None = None) -> None:
        """Check that columns, by default all, can be read.

        Raises:
            UnsafeColumn: a column is one of `refused`.
        """
        for name in self.schema.names if columns is None else columns:
            if name in self.refused:
                raise UnsafeColumn(
                    f"column {name} has the extension type {self.refused[name]}, which is not read because its values "
                    "could run code; write the file without this column, or with a plain type"
                )

    def read(self, columns: Sequence[str] | None = None, *, use_threads: bool = True) -> pa.Table:
        """Read columns of all row groups, by default all columns.

        Raises:
            UnsafeColumn: see `check_readable`.
            KeyError: there is no such column.
            pa.ArrowException, OSError: the file is damaged, or the store's error.
        """
        assert not self._pages, "pages are checked"
        self.check_readable(columns)
        return self._with_schema(self._file.read(_listed(columns), use_threads=use_threads), columns)

    def read_row_group(
        self,
        number: int,
        columns: Sequence[str] | None = None,
        *,
        limits: PageLimits | None = None,
        use_threads: bool = True,
    ) -> pa.Table:
        """Read columns of one row group, by default all columns; arguments and errors are those of `iter_batches`."""
        self._before_reading([number], columns, limits)
        return self._with_schema(self._file.read_row_group(number, _listed(columns), use_threads=use_threads), columns)

    def iter_batches(
        self,
        batch_size: int,
        row_groups: Sequence[int] | None = None,
        columns: Sequence[str] | None = None,
        *,
        limits: PageLimits | None = None,
        use_threads: bool = True,
    ) -> Iterator[pa.RecordBatch]:
        """Yield record batches of up to ``batch_size`` rows.

        Args:
            batch_size: largest number of rows.
            row_groups: by default all.
            columns: by default all.
            limits: of the pages, if they are checked.
            use_threads: decode columns in parallel.

        Raises:
            RepeatedValues: before the first batch, if ``batch_size`` is too large for ``limits``.
            UnsafeColumn, KeyError, pa.ArrowException, OSError: as `read`.
        """
        self._before_reading(row_groups, columns, limits)
        batches = self._file.iter_batches(batch_size, row_groups, _listed(columns), use_threads=use_threads)
        return (self._with_schema(batch, columns) for batch in batches)

    def _before_reading(
        self, row_groups: Sequence[int] | None, columns: Sequence[str] | None, limits: PageLimits | None
    ) -> None:
        self.check_readable(columns)
        if self._pages:
            assert limits, "pages are checked"
            numbers = range(self.metadata.num_row_groups) if row_groups is None else row_groups
            self._pages.expect(numbers, self.schema.names if columns is None else columns, limits)

    def _with_schema(self, table: Any, columns: Sequence[str] | None) -> Any:
        """Return a table or a record batch with the fields of `schema`, in the order of ``columns``."""
        if table.num_columns:  # without columns, only the number of rows matters
            fields = [self.schema.field(field.name).with_type(field.type) for field in table.schema]
            table = type(table).from_arrays(table.columns, schema=pa.schema(fields, self.schema.metadata))
        return table if columns is None else table.select(list(columns))


def read_table(data: bytes | pa.Buffer, columns: Sequence[str] | None = None, **options: Any) -> pa.Table:
    """Read a Parquet file in memory; arguments and errors are those of `ParquetFile` and `ParquetFile.read`."""
    with ParquetFile(data, **options) as file:
        return file.read(columns)


def read_columns(data: bytes | pa.Buffer, schema: pa.Schema) -> pa.Table:
    """Read the columns of ``schema`` and cast them to its types; columns that the file lacks are null.

    Raises:
        UnsafeColumn, pa.ArrowException, OSError: as `ParquetFile.read`.
    """
    with ParquetFile(data) as file:
        table = file.read([name for name in schema.names if name in file.schema.names])
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def read_schema(source: Any) -> pa.Schema:
    """Return the columns of a file, with the storage types of extension types; see `ParquetFile`."""
    with ParquetFile(source) as file:
        file.check_readable()
        return file.schema


def read_footer(source: Any) -> pq.FileMetaData:
    """Return the footer of a Parquet file without any extension type.

    The bytes of the footer change before Arrow parses them, and keep their length. Strings of a footer are contiguous
    bytes, so a key that no longer occurs in these bytes cannot reach Arrow in any encoding.

    Args:
        source: a path, bytes, or a seekable file; of bytes, only the end is needed, with the whole footer.

    Raises:
        pa.ArrowInvalid: it is damaged, encrypted, or its footer is larger than `MAX_FOOTER_BYTES`.
        OSError: the store's error.
    """
    footer = _footer_bytes(source)
    try:
        metadata = _without_extension_types(footer)
        _check_column_chunks(metadata)
    except UnicodeDecodeError as error:
        raise pa.ArrowInvalid(f"a name in the footer is not UTF-8 ({error})") from None
    return metadata


def _without_extension_types(footer: bytes) -> pq.FileMetaData:
    renamed = footer.replace(_SCHEMA_KEY, _RENAMED_SCHEMA_KEY)
    metadata = _parse_footer(renamed)
    found = (metadata.metadata or {}).get(_RENAMED_SCHEMA_KEY)
    if found is None or footer.count(_SCHEMA_KEY) > 1 or footer.count(found) != 1 or _RENAMED_SCHEMA_KEY in footer:
        return metadata  # Arrow derives the types from those of Parquet
    try:
        schema = base64.b64decode(found, validate=True)
    except binascii.Error as error:
        raise pa.ArrowInvalid(f"ARROW:schema in the footer is not base64 ({error})") from None
    cleaned = schema.replace(_NAME_KEY, _RENAMED_NAME_KEY)
    encoded = base64.b64encode(cleaned)
    if _NAME_KEY in cleaned or len(encoded) != len(found):
        raise pa.ArrowInvalid("ARROW:schema in the footer is damaged")
    return _parse_footer(footer.replace(found, encoded))


def leaf_paths(metadata: pq.FileMetaData) -> list[str]:
    """Return the path of each leaf column in the schema; column chunks name their paths too, but may lie."""
    return [metadata.schema.column(at).path for at in range(metadata.num_columns)]


def check_plain(fields: Iterable[pa.Field]) -> None:
    """Check that a table from elsewhere has no extension type, so that its values can be converted to Python's.

    Raises:
        UnsafeColumn: a field, or one nested in it, has an extension type.
    """
    for field in fields:
        for name in _extension_types(field):
            raise UnsafeColumn(f"column {field.name} has the extension type {name}; cast it to its storage type")


def _footer_bytes(source: Any) -> bytes:
    with ExitStack() as stack:
        if isinstance(source, (str, Path)):
            file: Any = stack.enter_context(Path(source).open("rb"))
        else:
            file = io.BytesIO(source) if isinstance(source, (bytes, pa.Buffer)) else source
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        tail = file.read(min(size, _TAIL_BYTES))
        if tail[-4:] == b"PARE":
            raise pa.ArrowInvalid("the file is encrypted")
        if tail[-4:] != _MAGIC or len(tail) < 8:
            raise pa.ArrowInvalid("the file does not end as a Parquet file does; it is cut, or of another format")
        length = int.from_bytes(tail[-8:-4], "little")
        if length > min(size - 8, MAX_FOOTER_BYTES):
            raise pa.ArrowInvalid(f"its footer has {length:,} bytes; the limit is {min(size - 8, MAX_FOOTER_BYTES):,}")
        if length + 8 > len(tail):
            file.seek(size - 8 - length)
            tail = file.read(length + 8)
        return bytes(tail[-8 - length : -8])


def _parse_footer(footer: bytes) -> pq.FileMetaData:
    file = b"".join((_MAGIC, footer, len(footer).to_bytes(4, "little"), _MAGIC))
    return pq.read_metadata(pa.BufferReader(file))


class _NoBytesError(Exception):
    """Arrow has parsed the metadata of all column chunks, and wants their bytes."""


class _NoBytes(io.RawIOBase):
    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return offset if whence == io.SEEK_SET else 2**62

    def tell(self) -> int:
        return 2**62

    def read(self, size: int | None = -1) -> bytes:
        raise _NoBytesError


def _check_column_chunks(metadata: pq.FileMetaData) -> None:
    """Let Arrow parse the metadata of all column chunks, as it does before it reads them.

    pyarrow's own objects for column chunks abort the process where these raise an error.
    """
    if metadata.num_row_groups and metadata.num_columns:
        with suppress(_NoBytesError):
            pq.ParquetFile(_NoBytes(), metadata=metadata, pre_buffer=True).read(use_threads=False)


def _extension_types(field: pa.Field) -> Iterator[str]:
    """Yield the names of the extension types of a field and of the fields nested in it."""
    if name := (field.metadata or {}).get(_RENAMED_NAME_KEY):
        yield "".join(letter if letter.isprintable() else "?" for letter in name.decode(errors="replace")[:100])
    type_ = field.type
    if isinstance(type_, pa.BaseExtensionType):  # Parquet's own, in versions of pyarrow without the option
        yield type_.extension_name
        type_ = type_.storage_type
    if pa.types.is_dictionary(type_) or pa.types.is_run_end_encoded(type_):
        yield from _extension_types(pa.field("", type_.value_type))
    for at in range(type_.num_fields):
        yield from _extension_types(type_.field(at))


def _binary_widths(type_: pa.DataType) -> Iterator[int]:
    """Yield the sizes of the binary values in a type; 0 if the size is variable."""
    if pa.types.is_fixed_size_binary(type_):
        yield type_.byte_width
    elif pa.types.is_binary(type_) or pa.types.is_large_binary(type_):
        yield 0
    for at in range(type_.num_fields):
        yield from _binary_widths(type_.field(at).type)


def _without_extension(field: pa.Field) -> pa.Field:
    """Return a field with the metadata that Arrow has where no extension type is registered.

    Only our tensor keeps the names, since Ray makes tensors of these fields. Its metadata, the number of dimensions, is
    checked: Ray may unpickle it.
    """
    metadata = dict(field.metadata or {})
    name, extension = metadata.pop(_RENAMED_NAME_KEY, b""), metadata.pop(_METADATA_KEY, b"")
    if name == TENSOR_TYPE.encode() and extension.isdigit() and len(extension) < 3 and is_tensor(field.type):
        value_type = field.type.field("data").type.value_type
        layout = pa.struct([("data", pa.large_list(value_type)), ("shape", pa.list_(pa.int64()))])
        return pa.field(field.name, layout, field.nullable, metadata | {_NAME_KEY: name, _METADATA_KEY: extension})
    return field.with_metadata(metadata or None)


def is_tensor(type_: pa.DataType) -> bool:
    """Return whether a type is the storage of our tensors: ``struct<data: large_list<T>, shape: list<int64>>``."""
    if not pa.types.is_struct(type_) or [child.name for child in type_] != ["data", "shape"]:
        return False
    data, shape = type_.field("data").type, type_.field("shape").type
    return bool(
        pa.types.is_large_list(data) and pa.types.is_primitive(data.value_type) and shape == pa.list_(pa.int64())
    )


def _listed(columns: Sequence[str] | None) -> list[str] | None:
    return None if columns is None else list(columns)
