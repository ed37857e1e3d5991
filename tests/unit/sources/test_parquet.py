"""Images inside Parquet files."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from inpaint_encode.settings import Source
from inpaint_encode.sources import Changed, PairReader
from inpaint_encode.stores import storage
from tests.unit.sources.make_sources import embedded, found_pairs, noise, write_parquet


def test_finding_pairs_reads_only_the_footers(prefix, requests):
    columns = {
        "image": [embedded(n) for n in range(10)],
        "mask": [noise(-n) for n in range(10)],
        "caption": [str(n) for n in range(10)],
        "depth": [embedded(n) for n in range(10)],
    }
    version = write_parquet(f"{prefix}/a/train-0.parquet", columns)
    write_parquet(f"{prefix}/b.parquet", {name: values[:2] for name, values in columns.items()})
    pairs = found_pairs(Source(pairs=prefix))
    driver_bytes = sum(size for _, size in requests)
    assert driver_bytes <= 2 * 2**16  # of each file what a reader takes for its footer
    assert [pair["key"] for pair in pairs] == [*(f"a/train-0/{n}" for n in range(10)), "b/0", "b/1"]
    assert [pair["extra_columns"] for pair in pairs] == [{"caption": str(n)} for n in [*range(10), 0, 1]]
    assert {pair["image_version"] for pair in pairs[:10]} == {version}
    assert pairs[7]["image_uri"] == f"{prefix}/a/train-0.parquet#row=7&column=image"
    assert {pair["image_bytes"] // 600 for pair in pairs} == {10}
    reader = PairReader()
    read = [
        (
            reader.read(pair["image_uri"], pair["image_version"]).data,
            reader.read(pair["mask_uri"], pair["mask_version"]).data,
        )
        for pair in pairs[:10]
    ]
    assert read == [(noise(n), noise(-n)) for n in range(10)]


def test_threads_fetch_each_row_group_once(prefix, requests):
    columns = {"image": [embedded(n) for n in range(64)], "mask": [embedded(-n) for n in range(64)]}
    write_parquet(f"{prefix}/x.parquet", columns)
    pairs = found_pairs(Source(pairs=f"{prefix}/x.parquet"))
    requests.clear()
    reader = PairReader()
    with ThreadPoolExecutor(8) as pool:
        read = list(
            pool.map(
                lambda pair: (
                    reader.read(pair["image_uri"], pair["image_version"]).data,
                    reader.read(pair["mask_uri"], pair["mask_version"]).data,
                ),
                pairs,
            )
        )
    assert read == [(noise(n), noise(-n)) for n in range(64)]
    assert sum(size for _, size in requests) < 1.2 * 64 * 2 * 6_000


def test_the_cache_holds_two_large_row_groups(tmp_path, requests, monkeypatch):
    monkeypatch.setattr("inpaint_encode.sources.parquet._CACHED_BYTES", 1)
    columns = {"image": [embedded(n) for n in range(64)], "mask": [embedded(-n) for n in range(64)]}
    write_parquet(f"{tmp_path}/x.parquet", columns)
    reader = PairReader()
    for pair in found_pairs(Source(pairs=f"{tmp_path}/x.parquet")):
        assert (
            reader.read(pair["image_uri"], pair["image_version"]).data,
            reader.read(pair["mask_uri"], pair["mask_version"]).data,
        ) != (None, None)
        assert sum(group.nbytes for group in reader._parquet_rows._chunks.values()) < 5 * 4 * 6_200
    assert sum(size for _, size in requests) < 1.2 * 64 * 2 * 6_000 + 2**16


def test_a_path_without_bytes_is_a_file_in_the_same_folder(prefix):
    columns = {
        "image": [embedded("x", path=True), embedded("y")],
        "mask": [embedded("x"), embedded("y", path=True)],
    }
    write_parquet(f"{prefix}/x.parquet", columns)
    version = storage.write(f"{prefix}/files/x", b"of a file")
    first, second = found_pairs(Source(pairs=f"{prefix}/x.parquet"))
    assert PairReader().read(first["image_uri"], first["image_version"]) == (b"of a file", version)
    with pytest.raises(FileNotFoundError):
        PairReader().read(second["mask_uri"], second["mask_version"])


def test_a_replaced_file_is_an_error(prefix):
    write_parquet(f"{prefix}/x.parquet", {"image": [noise(1)], "mask": [noise(2)]})
    (pair,) = found_pairs(Source(pairs=f"{prefix}/x.parquet"))
    version = write_parquet(f"{prefix}/x.parquet", {"image": [noise(3)], "mask": [noise(4)]})
    with pytest.raises(Changed, match="has changed since it was planned"):
        PairReader().read(pair["image_uri"], pair["image_version"])
    assert PairReader().read(pair["image_uri"]) == (noise(3), version)


def test_missing_rows_and_null_values(prefix):
    write_parquet(f"{prefix}/x.parquet", {"image": [None, noise(1)]})
    for row in (0, 2):
        with pytest.raises(FileNotFoundError):
            PairReader().read(f"{prefix}/x.parquet#row={row}&column=image")


def test_a_damaged_file_is_an_error(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    with pytest.raises(OSError, match="the Parquet file cannot be read"):
        PairReader().read(f"{tmp_path}/x.parquet#row=0&column=image")
