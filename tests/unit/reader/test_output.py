"""Listing an output, the metadata in its first file, and tensor columns as arrays."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from inpaint_encode import open_latents
from inpaint_encode.errors import UsageError
from inpaint_encode.reader import Output
from inpaint_encode.reader.output import RowBatch
from tests.outputs import write_output

from .conftest import FILES, check_row


def test_data_files_are_sorted_and_other_files_are_skipped(on_disk):
    output = Output.open(on_disk[0])
    assert [file.path for file in output.files] == [f"0a1b2c3d-{number:08}.parquet" for number in range(len(FILES))]
    assert (output.metadata.vae.scaling_factor, output.job, output.report) == (0.5, {}, {})


def test_a_folder_without_rows(tmp_path):
    with pytest.raises(UsageError, match="has no rows"):
        open_latents(str(tmp_path))


def test_a_file_that_no_job_wrote_has_no_metadata(tmp_path):
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "mine.parquet")
    with pytest.raises(UsageError, match=r"mine\.parquet is not a data file of an encode job"):
        _ = Output.open(str(tmp_path)).metadata


@pytest.mark.parametrize("masks", ["tensor", "packed"])
def test_masks_are_unpacked_and_types_are_kept(tmp_path, masks):
    written = write_output(str(tmp_path), FILES, mask_encoding=masks, samples_dtype="float16")
    for row, expected in zip(open_latents(str(tmp_path)), written, strict=True):
        check_row(row, expected)
        assert (row["samples"].dtype, row["noise_mask"].dtype) == (torch.float16, torch.uint8)


def test_other_tools_can_unpack_masks(tmp_path):
    written = write_output(str(tmp_path), FILES[:1], mask_encoding="packed")
    values = pq.read_table(tmp_path)["noise_mask"].to_pylist()
    for value, expected in zip(values, written, strict=True):
        bits, shape = np.frombuffer(value["bits"], np.uint8), value["shape"]
        assert np.array_equal(np.unpackbits(bits, count=math.prod(shape)).reshape(shape), expected["noise_mask"])


def test_arrays_are_read_only_views_of_the_batch(tmp_path):
    written = write_output(str(tmp_path), FILES[:1])
    (path,) = tmp_path.glob("*.parquet")
    (batch,) = pq.read_table(path).combine_chunks().to_batches()
    rows = RowBatch(batch.slice(5, 4))
    assert [row["key"] for row in rows] == [row["key"] for row in written[5:9]]
    assert np.array_equal(rows[1]["samples"], written[6]["samples"])
    assert np.shares_memory(rows[1]["samples"], rows[1]["samples"])
    with pytest.raises(ValueError, match="read-only"):
        rows[1]["samples"][:] = 0
