"""Listing an output, and the metadata in its first file."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inpaint_encode import open_latents
from inpaint_encode.errors import UsageError
from inpaint_encode.reader import Output

from .conftest import FILES


def test_data_files_are_sorted_and_other_files_are_skipped(on_disk):
    output = Output.open(on_disk[0])
    assert [file.path for file in output.files] == [f"0a1b2c3d-{number:08}.parquet" for number in range(len(FILES))]
    assert (output.metadata.vae.scaling_factor, output.job, output.report) == (0.5, {}, {})


def test_a_folder_without_rows(tmp_path):
    with pytest.raises(UsageError, match="holds no rows"):
        open_latents(str(tmp_path))


def test_a_file_that_no_job_wrote_has_no_metadata(tmp_path):
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "mine.parquet")
    with pytest.raises(UsageError, match=r"mine\.parquet is not a data file of an encode job"):
        _ = Output.open(str(tmp_path)).metadata
