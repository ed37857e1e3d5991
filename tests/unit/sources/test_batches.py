"""Lists and tars in batches of bounded size: what they contain, and what is skipped because it is known."""

import pyarrow as pa
import pytest

from inpaint_encode.errors import UsageError
from inpaint_encode.settings import Source
from inpaint_encode.sources import PairBatch, Slice, open_source
from inpaint_encode.sources.pairs import BATCH_BYTES, BATCH_PAIRS
from inpaint_encode.stores import storage
from inpaint_encode.stores.pool import map_concurrently
from tests.unit.sources.make_sources import (
    noise,
    read_all,
    read_batches,
    sample,
    write_manifest,
    write_parquet,
    write_tar,
)

ROWS = 25
LINES = [
    {"image": f"a/{n}.jpg", "mask": f"m/{n}.png", "text": f'{n} "quoted", ' * (n % 4), "n": n} for n in range(ROWS)
]


@pytest.fixture
def set_limits(monkeypatch):
    """Return a function that sets the limits of a batch, and lets files be read a few lines at a time."""

    def limit(pairs: int, size: int = BATCH_BYTES, buffered: int = 2**27) -> None:
        monkeypatch.setattr("inpaint_encode.sources.pairs.BATCH_PAIRS", pairs)
        monkeypatch.setattr("inpaint_encode.sources.pairs.BATCH_BYTES", size)
        limits = {"parquet_lists._FOOTER": 0, "parquet_lists.SMALL": 0, "parquet_lists._BUFFERED": buffered}
        limits |= {"text_lists.SMALL": 0, "text_lists._MAX_LINE": 200, "text_lists._BLOCK": 100}
        for name, value in limits.items():
            monkeypatch.setattr(f"inpaint_encode.sources.{name}_BYTES", value)

    return limit


def write_csv(path) -> None:
    quoted = [line | {"text": '"' + line["text"].replace('"', '""') + '"'} for line in LINES]
    write_manifest(path, quoted)


def make_list(folder, suffix: str) -> Source:
    """Write one large list of `ROWS` lines, or several Parquet files or tars with as many."""
    path = folder / f"x.{suffix}"
    match suffix:
        case "csv":
            write_csv(path)
        case "jsonl":
            write_manifest(path, LINES)
        case "parquet":
            columns = {name: [line[name] for line in LINES] for name in LINES[0]}
            write_parquet(str(path), columns, group=7)
        case "rows.parquet":
            columns = {"image": [noise(n) for n in range(ROWS)], "mask": [noise(-n) for n in range(ROWS)]}
            write_parquet(str(path), columns | {"n": list(range(ROWS))}, group=7)
        case "tar":
            write_tar(str(path), {name: data[:9] for n in range(ROWS) for name, data in sample(f"s{n}").items()})
    return Source(pairs=str(path))


def lines_of(read: list[PairBatch]) -> list[tuple[str, int]]:
    """Return the file and the number of the line of each pair."""
    found = []
    for batch in read:
        lines = [(part.file, number) for part in batch.slices for number in range(part.start, part.end)]
        found += [lines[line] for line in batch.pairs["line"].to_pylist()]
    return found


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet", "rows.parquet", "tar"])
@pytest.mark.parametrize(("pairs", "size", "buffered"), [(4, BATCH_BYTES, 2**27), (100, 2_000, 0), (1, 1, 0)])
def test_small_batches_have_the_same_pairs_as_a_large_one(tmp_path, set_limits, suffix, pairs, size, buffered):
    source = make_list(tmp_path, suffix)
    (whole,) = read_batches(source)
    assert lines_of([whole]) == [(source.pairs, number) for number in range(ROWS)]
    set_limits(pairs, size, buffered)
    parts = read_batches(source)
    assert pa.concat_tables(part.pairs.drop_columns("line") for part in parts) == whole.pairs.drop_columns("line")
    assert lines_of(parts) == lines_of([whole])
    assert all(part.pairs.num_rows <= pairs for part in parts)
    assert all(part.pairs.nbytes <= 1.2 * size or part.pairs.num_rows == 1 for part in parts)
    assert [part.slices[-1].is_last for part in parts] == [False] * (len(parts) - 1) + [True]
    assert len(parts) > 2


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet", "rows.parquet", "tar"])
def test_known_lines_are_skipped(tmp_path, set_limits, suffix):
    set_limits(4)
    source = make_list(tmp_path, suffix)
    whole = read_batches(source)
    last = whole[2].slices[-1]
    assert (last.start, last.end) == (8, 12)
    rest = read_batches(source, {last.file: last})
    assert lines_of(rest) == [(source.pairs, number) for number in range(12, ROWS)]
    keys = pa.concat_tables(part.pairs for part in whole)["key"].to_pylist()
    assert pa.concat_tables(part.pairs for part in rest)["key"].to_pylist() == keys[12:]
    assert rest[-1].slices[-1] == whole[-1].slices[-1]
    assert read_batches(source, {last.file: rest[-1].slices[-1]}) == []
    changed = read_batches(source, {last.file: last._replace(version="other")})
    assert lines_of(changed) == lines_of(whole)


def write_file(path: str, count: int) -> None:
    """Write a tar with one pair, or a Parquet file with ``count`` lines."""
    if path.endswith(".tar"):
        write_tar(path, sample(f"s{count}"))
    else:
        masks = [f"{mask}.png" for mask in range(count)]
        write_parquet(path, {"image": pa.array(masks, pa.string()), "mask": pa.array(masks, pa.string())})


@pytest.mark.parametrize("suffix", ["parquet", "tar"])
def test_small_files_share_a_batch_and_known_ones_are_not_read(tmp_path, requests, suffix):
    for n in range(5):
        write_file(f"{tmp_path}/{n}.{suffix}", n)
    source = Source(pairs=str(tmp_path))
    (batch,) = read_batches(source)
    assert [part.file for part in batch.slices] == [f"{tmp_path}/{n}.{suffix}" for n in range(5)]
    assert all(part.is_last and part.start == 0 for part in batch.slices)
    assert len(lines_of([batch])) == sum(part.end for part in batch.slices) == batch.pairs.num_rows
    requests.clear()
    write_file(f"{tmp_path}/3.{suffix}", 7)
    opened = open_source(source)
    rest = list(opened.batches({part.file: part for part in batch.slices[1:]}))
    assert opened.unchanged == {f"{tmp_path}/{n}.{suffix}" for n in (1, 2, 4)}
    assert [part.file for some in rest for part in some.slices] == [f"{tmp_path}/{n}.{suffix}" for n in (0, 3)]
    assert {uri for uri, _ in requests} == {f"{tmp_path}/0.{suffix}", f"{tmp_path}/3.{suffix}"}


def test_a_version_without_a_value_is_never_known(tmp_path, monkeypatch):
    source = make_list(tmp_path, "csv")
    stat = storage.stat
    monkeypatch.setattr(storage, "stat", lambda uri, access: stat(uri, access)._replace(version=""))
    monkeypatch.setattr(storage, "read_range", without_version(storage.read_range))
    known = {source.pairs: Slice(source.pairs, "", 0, ROWS, is_last=True)}
    assert read_all(open_source(source), known).num_rows == ROWS


def without_version(read_range):
    return lambda *args: read_range(*args)._replace(version="")


def test_a_file_without_rows_has_a_slice(tmp_path):
    write_parquet(f"{tmp_path}/0.parquet", {"image": ["a.jpg"], "mask": ["a.png"]})
    write_parquet(f"{tmp_path}/1.parquet", {"image": pa.array([], pa.string()), "mask": pa.array([], pa.string())})
    (batch,) = read_batches(Source(pairs=str(tmp_path)))
    assert [(part.start, part.end, part.is_last) for part in batch.slices] == [(0, 1, True), (0, 0, True)]
    (empty,) = read_batches(Source(pairs=str(tmp_path)), {batch.slices[0].file: batch.slices[0]})
    assert empty.pairs.num_rows == 0
    assert empty.slices == batch.slices[1:]


def test_files_with_other_columns_are_an_error(tmp_path):
    write_parquet(f"{tmp_path}/0.parquet", {"image": ["a.jpg"], "mask": ["a.png"], "n": [1]})
    write_parquet(f"{tmp_path}/1.parquet", {"image": ["b.jpg"], "mask": ["b.png"], "n": ["1"]})
    with pytest.raises(UsageError, match=r"1\.parquet has other columns than .*0\.parquet; give all files the same"):
        read_batches(Source(pairs=str(tmp_path)))


@pytest.mark.parametrize("suffix", ["csv", "parquet", "tar"])
def test_all_random_masks_of_a_line_are_in_one_batch(tmp_path, set_limits, suffix):
    source = make_list(tmp_path, suffix).model_copy(update={"random_masks": 3})
    (whole,) = read_batches(source)
    assert whole.slices[0].version.endswith(" random_masks=3")
    assert lines_of([whole]) == [(source.pairs, number // 3) for number in range(3 * ROWS)]
    set_limits(4)
    parts = read_batches(source)
    assert [part.pairs.num_rows for part in parts] == [3] * ROWS
    set_limits(14)
    assert [part.pairs.num_rows for part in read_batches(source)] == [12] * 6 + [3]
    assert lines_of(parts) == lines_of([whole])
    set_limits(100, size=3_000)
    assert max(part.pairs.num_rows for part in read_batches(source)) < 3 * ROWS


def test_other_random_masks_read_a_file_again(tmp_path):
    source = make_list(tmp_path, "csv").model_copy(update={"random_masks": 1})
    (batch,) = read_batches(source)
    known = {source.pairs: batch.slices[0]}
    assert read_batches(source, known) == []
    assert len(read_batches(source.model_copy(update={"random_masks": 2}), known)) == 1


def test_a_long_value_among_short_ones_is_cut_off(tmp_path, set_limits):
    set_limits(BATCH_PAIRS, size=10_000)
    texts = ["x" * 6_000 if n == 20 else "" for n in range(ROWS)]
    write_parquet(f"{tmp_path}/x.parquet", {"image": ["a"] * ROWS, "mask": ["b"] * ROWS, "text": texts}, group=ROWS)
    parts = read_batches(Source(pairs=f"{tmp_path}/x.parquet"))
    assert max(part.pairs.nbytes for part in parts) < 11_000
    assert sum(part.pairs.num_rows for part in parts) == ROWS


def test_a_list_that_is_replaced_while_it_is_read_is_an_error(tmp_path, set_limits):
    set_limits(4)
    source = make_list(tmp_path, "parquet")
    read = open_source(source).batches({})
    next(read)
    write_parquet(source.pairs, {"image": ["a"], "mask": ["b"]})
    with pytest.raises(UsageError, match="was replaced while it was read; run the command again"):
        list(read)


def test_results_are_computed_ahead_in_order():
    started = []

    def double(number: int) -> int:
        started.append(number)
        return 2 * number

    results = map_concurrently(double, range(100), 4, ahead=4)
    assert [next(results) for _ in range(10)] == list(range(0, 20, 2))
    assert max(started) <= 10 + 4
    results.close()
