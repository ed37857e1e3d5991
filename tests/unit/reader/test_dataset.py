"""`open_latents` and the map-style dataset, on a disk and on a real S3 server."""

from itertools import islice
from uuid import uuid4
from weakref import WeakSet

import pytest
import torch
from torch.utils.data import DataLoader

from inpaint_encode import iter_rows, open_latents
from inpaint_encode.errors import UsageError
from inpaint_encode.reader.batches import collate
from inpaint_encode.reader.groups import RowGroupReader
from inpaint_encode.stores import storage
from tests.outputs import write_output

from .conftest import COUNT, FILES, check_row, keys


class TestRows:
    def test_iteration_yields_every_row_as_written(self, output):
        uri, written = output
        dataset = open_latents(uri)
        assert isinstance(dataset, torch.utils.data.Dataset)
        for row, expected in zip(dataset, written, strict=True):
            check_row(row, expected)
            row["samples"] += 1  # it owns its memory
        assert len(dataset) == len(written)
        assert list(dataset.keys()) == keys(written)

    def test_iter_rows_yields_the_same_rows_as_arrays(self, output):
        uri, written = output
        for row, array_row, expected in zip(open_latents(uri), iter_rows(uri), written, strict=True):
            assert row.keys() == array_row.keys() >= expected.keys()
            check_row(row, array_row)

    def test_rows_by_number_and_by_key(self, output):
        uri, written = output
        dataset = open_latents(uri)
        for number in (0, 2, 3, 12, COUNT - 1):
            check_row(dataset[number], written[number])
            check_row(dataset[number - COUNT], written[number])
            check_row(dataset[written[number]["key"]], written[number])
        assert keys(dataset.__getitems__([7, 0, 7, 1])) == keys(written[number] for number in (7, 0, 7, 1))
        with pytest.raises(IndexError, match="row 29 is out of range: the output has 29 rows"):
            dataset[COUNT]
        for key in ("", "00/0000", "an unknown key", "00/001 "):
            with pytest.raises(KeyError):
                dataset[key]

    def test_a_row_by_its_key_is_transformed(self, on_disk):
        dataset = open_latents(on_disk[0]).map(lambda row: {"upper": row["key"].upper() + "!"})
        assert dataset["00/003"] == dataset[3] == {"upper": "00/003!"}

    def test_only_the_given_columns_are_read(self, output):
        uri, written = output
        rows = list(open_latents(uri, columns=["samples", "key", "caption"]))
        assert [row.keys() for row in rows] == [{"samples", "key", "caption"}] * COUNT
        assert [row["caption"] for row in rows] == [row["caption"] for row in written]
        with pytest.raises(UsageError, match="has no column mask; it has key, samples, noise_mask, image_uri"):
            open_latents(uri, columns=["mask"])
        with pytest.raises(UsageError, match="columns is empty"):
            open_latents(uri, columns=[])

    def test_functions_are_applied_in_order(self, on_disk):
        dataset = open_latents(on_disk[0])
        negated = dataset.map(lambda row: {**row, "samples": -row["samples"]})
        named = negated.map(lambda row: {"key": row["key"].upper(), "sum": row["samples"].sum()})
        assert torch.equal(negated[3]["samples"], -dataset[3]["samples"])
        assert named["00/003"].keys() == {"key", "sum"}
        (batch,) = islice(named.stream(batch_size=2), 1)
        assert batch["sum"].tolist() == [-dataset[number]["samples"].sum().item() for number in (0, 1)]

    def test_metadata(self, on_disk):
        assert open_latents(on_disk[0]).metadata.vae.scaling_factor == 0.5


class TestRequests:
    """Requests to the store."""

    def test_opening_reads_no_file_and_counting_reads_each_footer_once(self, s3, requests):
        uri = s3.uri("reader", uuid4().hex)
        write_output(uri, FILES)
        dataset = open_latents(uri)
        assert requests == []
        assert len(dataset) == len(dataset.map(dict)) == COUNT
        assert len(requests) == len(FILES)
        list(dataset.stream())
        assert len(requests) == len(FILES) + len(dataset.groups.index.sizes)

    def test_a_row_is_read_without_the_rest_of_its_file(self, s3, requests):
        """A file of 35 row groups: the keys of one row group are read, then that row group."""
        uri = s3.uri("reader", uuid4().hex)
        write_output(uri, [[(24, 24)] * 105])
        size = storage.stat(f"{uri}/0a1b2c3d-00000000.parquet").size
        row = open_latents(uri)["00/070"]
        (footer, keys_read, group) = requests
        assert row["key"] == "00/070"
        assert footer[2] == 2**16
        assert keys_read[2] < 1_000
        assert size / 45 < group[2] < size / 28


class TestDataLoader:
    def test_a_list_of_rows_keeps_few_row_groups_in_memory(self, on_disk, monkeypatch):
        read, alive, counts = RowGroupReader.read, WeakSet(), []

        def count(groups, group):
            rows = read(groups, group)
            alive.add(rows)
            counts.append(len(alive))
            return rows

        monkeypatch.setattr(RowGroupReader, "read", count)
        assert keys(open_latents(on_disk[0]).__getitems__(range(COUNT))) == keys(on_disk[1])
        assert len(counts) == 11
        assert max(counts) <= 4

    def test_a_loader_over_the_dataset_itself(self, tmp_path):
        written = write_output(str(tmp_path), [[(4, 4)] * 20] * 2)
        loader = DataLoader(open_latents(str(tmp_path)), 8, shuffle=True, num_workers=2, collate_fn=collate)
        batches = list(loader)
        assert sorted(keys(batches)) == keys(written)
        assert batches[0]["samples"].shape == (8, 4, 4, 4)
