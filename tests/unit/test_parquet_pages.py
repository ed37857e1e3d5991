"""Small files that would fill the memory, and large ones that do not."""

import io
import random
import struct
import threading
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inpaint_encode.errors import UsageError
from inpaint_encode.parquet_file import ParquetFile, read_footer
from inpaint_encode.parquet_pages import PageCheck, PageLimits, RepeatedValues, _read_struct
from inpaint_encode.settings import Source
from inpaint_encode.sources import PairReader, open_source, parquet_lists
from inpaint_encode.sources import parquet as embedded
from inpaint_encode.sources.part_uris import row_uris
from tests.pickled_parquet import encoded

ROWS = 1_000
LARGE = "a" * 900_000
REPEATED = pa.DictionaryArray.from_arrays(pa.array([0] * ROWS, pa.int32()), [LARGE])
"""Written as a dictionary page of 0.9 MB, and read as 900 MB of strings."""
NAMES = [f"{row}.png" for row in range(ROWS)]
PLENTY = PageLimits(2**16, 2**28)


class Peak:
    """Measures the bytes that Arrow holds, every millisecond, until the end."""

    def __init__(self) -> None:
        self._start = self._most = pa.total_allocated_bytes()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._measure)
        self._thread.start()

    def _measure(self) -> None:
        while not self._ended.wait(0.001):
            self._most = max(self._most, pa.total_allocated_bytes())

    def end(self) -> int:
        """Return the most bytes above those at the start."""
        self._ended.set()
        self._thread.join()
        return self._most - self._start


@pytest.fixture
def peak():
    measured: list[Peak] = []

    def start() -> Peak:
        measured.append(Peak())
        return measured[0]

    yield start
    for one in measured:
        one.end()


def write_list(path, **columns: object) -> str:
    path.write_bytes(
        encoded(pa.table({"image": NAMES, "mask": NAMES, **columns}), compression="zstd", store_schema=False)
    )
    assert path.stat().st_size < 100_000
    return str(path)


@pytest.mark.parametrize("column", ["image", "mask"])
def test_a_dictionary_that_repeats_a_large_path(tmp_path, column, peak):
    path = write_list(tmp_path / "x.parquet", **{column: REPEATED})
    measured = peak()
    with pytest.raises(UsageError, match=rf"x\.parquet .*column {column} has a value of 900,000 bytes in row group 0"):
        list(open_source(Source(pairs=path)).batches({}))
    assert measured.end() < 2**24


def test_other_columns_may_repeat_large_values(tmp_path, monkeypatch, peak):
    monkeypatch.setattr("inpaint_encode.sources.pairs.BATCH_BYTES", 2**25)
    path = write_list(tmp_path / "x.parquet", text=REPEATED)
    rows, measured = 0, peak()
    for batch in open_source(Source(pairs=path)).batches({}):
        assert batch.pairs["extra_columns"][0].as_py() == {"text": LARGE}
        rows += batch.pairs.num_rows
    assert rows == ROWS
    assert measured.end() < 6 * 2**25


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (pa.ListArray.from_arrays(range(ROWS + 1), REPEATED), "has lists with many values in few bytes"),
        (pa.DictionaryArray.from_arrays(pa.array([0] * ROWS, pa.int32()), ["a" * 2**25]), "has a value of 33,554,432"),
        (
            pa.DictionaryArray.from_arrays(pa.array([0] * ROWS, pa.int32()), ["a" * 2**27]),
            "has a dictionary of 134,217",
        ),
    ],
)
def test_values_that_are_too_large(tmp_path, values, sentence, peak):
    path = write_list(tmp_path / "x.parquet", text=values)
    measured = peak()
    with pytest.raises(UsageError, match=rf"x\.parquet is not valid parquet; correct it \(column text.* {sentence}"):
        list(open_source(Source(pairs=path)).batches({}))
    assert measured.end() < 2**27


def test_a_list_with_many_values(tmp_path):
    """One row; its levels are a few bytes for each page."""
    numbers = pa.array([[0] * 2_000_000], pa.list_(pa.int8()))
    data = encoded(pa.table({"image": ["a"], "mask": ["b"], "n": numbers}), compression="zstd")
    path = tmp_path / "x.parquet"
    path.write_bytes(data)
    read = open_source(Source(pairs=str(path)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inpaint_encode.parquet_pages._MAX_LIST_VALUES", 1_000_000)
        with pytest.raises(UsageError, match="lists with many values in few bytes"):
            list(read.batches({}))
    assert [batch.pairs.num_rows for batch in open_source(Source(pairs=str(path))).batches({})] == [1]


def test_a_page_of_zeros():
    pages = pa.array([b"\0" * 2**20] * 300, pa.binary())
    data = encoded(pa.table({"a": pages}), compression="zstd", use_dictionary=False)
    assert len(data) < 2**16
    with pytest.raises(pa.ArrowInvalid, match=r"column a has a page of 314,574,007 bytes; the limit is 268,435,456"):
        list(ParquetFile(data, check_pages=True).iter_batches(10, limits=PLENTY))
    limits = PageLimits(None, 2**28, page_bytes=2**30, chunk_bytes=2**25)
    with pytest.raises(pa.ArrowInvalid, match="column a has more than 33,554,432 bytes in a row group"):
        ParquetFile(data, check_pages=True).read_row_group(0, limits=limits)


@pytest.mark.parametrize("is_struct", [True, False])
@pytest.mark.parametrize("count", [ROWS, 3])
def test_embedded_images_that_a_dictionary_repeats(tmp_path, is_struct, count):
    image, other = LARGE.encode(), b"other"
    numbers = pa.array([0] * (count - 1) + [1], pa.int32())
    values = pa.DictionaryArray.from_arrays(numbers, pa.array([image, other]))
    path = tmp_path / "x.parquet"
    images = pa.StructArray.from_arrays([values, pa.nulls(count, pa.string())], ["bytes", "path"])
    table = pa.table({"image": images if is_struct else values, "mask": NAMES[:count]})
    path.write_bytes(encoded(table, compression="zstd", store_schema=False))
    before = pa.total_allocated_bytes()
    reader = PairReader()
    uris = row_uris(str(path), pa.array([1, count - 1, 0]), "image").to_pylist()
    assert [reader.read(uri).data for uri in uris] == [image, other, image]
    assert pa.total_allocated_bytes() - before < 2**24


def test_pages_and_headers_may_be_split_anywhere():
    rng = random.Random(0)
    table = pa.table({"a": [rng.choice(["x", "y" * 50, None]) for _ in range(5_000)], "b": list(range(5_000))})
    for options in (
        {},
        {"data_page_version": "2.0"},
        {"compression": "gzip"},
        {"compression": "none"},
        {"compression": "lz4"},
    ):
        data = encoded(table, data_page_size=500, **options)
        metadata = read_footer(data)
        check = PageCheck(io.BytesIO(data), metadata)
        for step in (1, 7, 100, len(data)):
            check.expect([0], ["a", "b"], PLENTY)
            check.seek(0)
            while check.read(step):
                pass
            assert [chunk.values for chunk in check._chunks] == [5_000, 5_000]
            assert not any(chunk.pending or chunk.skipped for chunk in check._chunks)
        check.expect([0], ["a"], PageLimits(100, 100 * 50 - 1))
        check.seek(0)
        with pytest.raises(RepeatedValues) as raised:
            check.read()
        assert (raised.value.column, raised.value.largest) == ("a", 50)


def test_a_dictionary_after_other_pages_is_refused():
    """Arrow accepts it; a check of the first page only would miss it."""
    file = io.BytesIO()
    pq.write_table(pa.table({"a": ["x", "y"]}), file, compression="none")
    data = file.getvalue()
    chunk = read_footer(data).row_group(0).column(0)
    start, pages, end = chunk.dictionary_page_offset, chunk.data_page_offset, chunk.total_compressed_size
    swapped = data[:start] + data[pages : start + end] + data[start:pages] + data[start + end :]
    with pytest.raises(pa.ArrowInvalid, match="has a dictionary that is not its first page"):
        list(ParquetFile(swapped, check_pages=True).iter_batches(1, limits=PLENTY))


def test_damaged_pages_are_errors_of_arrow():
    rng = random.Random(1)
    data = encoded(pa.table({"a": ["x", "y"] * 50, "b": [[1], [2]] * 50}))
    end = len(data) - 8 - struct.unpack("<I", data[-8:-4])[0]
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(4, end)] = rng.randrange(256)
        with suppress(pa.ArrowException, OSError):
            list(ParquetFile(bytes(damaged), check_pages=True).iter_batches(64, limits=PLENTY))


@pytest.mark.parametrize(
    "data", [b"\x15\x02\x05\x02\x02\x00", b"\x15" + b"\xff" * 12, b"\x1c" * 40, b"\x1b\x00\x00", b"\x1d\x00\x00"]
)
def test_invalid_headers(data):
    with pytest.raises(pa.ArrowInvalid):
        _read_struct(bytearray(data), 0, 0)


def test_limits_of_lists_and_images_fit_together():
    assert parquet_lists._MAX_PATH_BYTES < parquet_lists._MAX_VALUE_BYTES < embedded._REPEATED_BYTES
