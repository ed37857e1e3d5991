"""The names and contents of the index, which tells readers and resumed runs what the data files contain.

``_index/<job>-<unit>.<revision>.parquet``       `inpaint_encode.schema.UNIT_INDEX`: the chunks of a unit
``_index/<job>-<unit>.<revision>-keys.parquet``  `inpaint_encode.schema.KEY_INDEX` of its rows
``_index/<job>-files-<token>.parquet``           `inpaint_encode.schema.FILE_INDEX` of a finished output
``_index/<job>-keys-<token>-<bucket>.parquet``   `inpaint_encode.schema.KEY_INDEX` of rows whose hashes begin alike
``_index.json``                                  `IndexNote`: names the last two; without it, the output is not finished

The index is a cache. A unit's index may be missing, or describe versions of data files that were replaced. So readers
use it for a data file only if the file has the same version. A run removes the note before it changes a data file, and
writes a new one at its end. The token is the run's, so that no file is replaced that a reader of an older note needs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import pyarrow as pa
import pyarrow.parquet as pq

from inpaint_encode.json_files import convert_json, parse_object
from inpaint_encode.parquet_file import ParquetFile
from inpaint_encode.schema import KEY_INDEX
from inpaint_encode.stores import storage
from inpaint_encode.stores.redaction import get_logger

from .notes import Count, DamagedNote, JobName, Parsed, read_parsed
from .parquet import check_counts

NOTE = "_index.json"
"""Path of the note in an output."""

FORMAT = 1
"""Version of these files; a reader ignores the index of another version."""

KEYS_PER_BUCKET = 2**17
"""Number of keys in a bucket, at most on average: 1.5 MB, which one request reads."""

_ROW_GROUP = 2**15
"""Rows of a row group of the index; a reader needs the memory to decode one."""

_UNIT_INDEX = re.compile(r"_index/(?P<job>[0-9a-f]{8})-(?P<unit>\d{6})\.(?P<revision>\d{1,5})\.parquet")
_LOG = get_logger(__name__)


@dataclass(frozen=True)
class IndexNote:
    """The contents of ``_index.json``: where the index of a finished output is, and what it has in total."""

    job: JobName
    files: Annotated[str, re.compile("_index/[0-9a-f]{8}-files-[0-9a-f]{8}[.]parquet")]
    """Path of the `FILE_INDEX`, relative to the output."""
    keys: Annotated[str, re.compile("_index/[0-9a-f]{8}-keys-[0-9a-f]{8}")]
    """Start of the paths of the buckets of keys; see `buckets`."""
    key_bits: Annotated[int, range(21)]
    """Number of the hash's first bits that select a bucket: 20 for 137 billion rows."""
    data_files: Count
    rows: Count
    rejected: Count
    data_bytes: Count
    digest: str
    """SHA-256 of the names and versions of all data files."""
    format: int = FORMAT

    @classmethod
    def parse(cls, data: bytes) -> IndexNote:
        """Read a note.

        Raises:
            ValueError: it is damaged, or of another version.
        """
        note = convert_json(cls, parse_object(data))
        if note.format != FORMAT:
            raise ValueError(f"it has format {note.format}, and this version reads format {FORMAT}")
        return note

    def to_json(self) -> bytes:
        """Return the contents of the file."""
        return json.dumps(asdict(self), indent=2).encode()

    def bucket_of(self, key_hash: int) -> int:
        """Return the number of the bucket that has a hash."""
        return key_hash >> (64 - self.key_bits)

    @property
    def buckets(self) -> list[str]:
        """The paths of all buckets, relative to the output."""
        return [f"{self.keys}-{bucket:05d}.parquet" for bucket in range(2**self.key_bits)]

    @property
    def paths(self) -> set[str]:
        """The paths of all files that the note names."""
        return {self.files, *self.buckets}


def is_hidden(path: str) -> bool:
    """Whether a component of a path begins with ``_`` or ``.``: then the file is no data file."""
    return path[:1] in ("_", ".") or "/_" in path or "/." in path


def unit_index_path(job: str, unit: int, revision: int) -> str:
    """Return the path of a unit's index, relative to the output."""
    return f"_index/{job}-{unit:06d}.{revision}.parquet"


def unit_keys_path(index_path: str) -> str:
    """Return the path of the keys that belong to a unit's index."""
    return index_path.removesuffix(".parquet") + "-keys.parquet"


def newest_unit_indexes(paths: Iterable[str]) -> dict[tuple[str, int], str]:
    """Return the paths of units' indexes by job and unit, sorted; of several revisions, the last."""
    newest: dict[tuple[str, int], tuple[int, str]] = {}
    for name in filter(None, map(_UNIT_INDEX.fullmatch, paths)):
        unit = name["job"], int(name["unit"])
        newest[unit] = max(newest.get(unit, (-1, "")), (int(name["revision"]), name[0]))
    return {unit: newest[unit][1] for unit in sorted(newest)}


def read_index_file(uri: str, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table | None:
    """Return a table of the index, or None if the file is missing or damaged.

    Args:
        uri: of the file.
        schema: of the file.
        columns: to read; by default all.

    Raises:
        PermissionError, OSError: the store's error.
    """
    kept = pa.schema([schema.field(name) for name in columns or schema.names])
    try:
        data = storage.read(uri).data
    except FileNotFoundError:
        return None
    try:
        with ParquetFile(data, page_checksum_verification=True) as file:
            batches = list(file.iter_batches(_ROW_GROUP, columns=kept.names, use_threads=False))
        table = pa.Table.from_batches(batches, kept) if batches else kept.empty_table()
        check_counts(table, schema)
        return table
    except (pa.ArrowException, ValueError, KeyError, OSError) as error:
        reason = (str(error).splitlines() or [""])[0]
        _LOG.warning(
            "%s is damaged (%s) and is ignored; delete it and run encode again to write a new one", uri, reason
        )
        return None


def parse_note(output: str) -> Parsed[IndexNote]:
    """Return the note of an output.

    Raises:
        DamagedNote: it is damaged, or of another version.
        FileNotFoundError, PermissionError, OSError: the store's error.
    """
    advice = "run the same command again to write it again"
    return read_parsed(storage.join(output, NOTE), IndexNote.parse, advice)


def read_note(output: str) -> IndexNote | None:
    """Return the note of an output; None if it is missing or damaged.

    Raises:
        PermissionError, OSError: the store's error.
    """
    try:
        return parse_note(output).value
    except FileNotFoundError:
        return None
    except DamagedNote as error:
        uri = storage.join(output, NOTE)
        _LOG.warning("%s cannot be used (%s) and is ignored; run encode again to write a new one", uri, error.reason)
        return None


def encode_index_file(table: pa.Table) -> bytes:
    """Encode a table of the index as a Parquet file."""
    out = pa.BufferOutputStream()
    pq.write_table(
        table,
        out,
        row_group_size=_ROW_GROUP,
        compression="zstd",
        use_dictionary=False,
        use_byte_stream_split=table.column_names if table.schema == KEY_INDEX else False,
        write_statistics=False,
        write_page_checksum=True,
    )
    return bytes(out.getvalue().to_pybytes())
