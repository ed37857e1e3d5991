"""The index of row groups, and what reading one raises."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inpaint_encode import open_latents
from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.reader import Output, iter_rows
from inpaint_encode.reader.groups import RowGroupIndex, RowGroupReader
from inpaint_encode.stores import storage
from inpaint_encode.stores.ranged_file import Changed
from tests.outputs import write_output

from .conftest import COUNT


def test_the_index_has_the_row_groups_that_have_rows(on_disk):
    index = RowGroupIndex.build(Output.open(on_disk[0]))
    assert index.files.tolist() == [0] * 4 + [2] * 2 + [3] * 4 + [4]
    assert index.groups.tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 2, 3, 0]
    assert index.sizes.tolist() == [3] * 4 + [3, 2] + [3] * 3 + [2, 1]
    assert (index.min_keys[1].as_py(), index.max_keys[1].as_py()) == ("00/003", "00/005")
    assert (len(index), index.locate(13), index.locate(-1)) == (COUNT, (4, 1), (10, 0))


def test_an_output_without_rows_has_an_empty_index(tmp_path):
    write_output(str(tmp_path), [[], []])
    groups = RowGroupReader(Output.open(str(tmp_path)))
    assert (len(groups.index), groups.find("00/000")) == (0, None)
    with pytest.raises(IndexError, match="row 0 is out of range"):
        groups.index.locate(0)


def test_keys_that_are_not_sorted_are_found(tmp_path):
    """As after a refresh: the second file has the smaller keys."""
    write_output(str(tmp_path / "a"), [[(4, 4)] * 6, [(4, 4)] * 6])
    for number, path in enumerate(sorted((tmp_path / "a").glob("*.parquet")), 1):
        path.rename(path.with_name(f"0a1b2c3d-{9 - number:08}.parquet"))
    dataset = open_latents(str(tmp_path / "a"))
    assert next(dataset.keys()) == "01/000"
    assert dataset["00/005"]["key"] == "00/005"


def test_a_replaced_file_is_not_read_with_its_old_footer(empty_prefix):
    write_output(empty_prefix, [[(4, 4)] * 3])
    dataset = open_latents(empty_prefix)
    assert len(dataset) == 3
    write_output(empty_prefix, [[(4, 5)] * 4])
    with pytest.raises(Changed, match=r"00000000\.parquet (has )?changed"):
        dataset[1]
    with pytest.raises(Changed, match=r"00000000\.parquet (has )?changed"):
        list(dataset.stream(batch_size=2))


def test_the_error_names_a_deleted_file(empty_prefix):
    write_output(empty_prefix, [[(4, 4)] * 3])
    dataset = open_latents(empty_prefix)
    assert len(dataset) == 3
    storage.delete(f"{empty_prefix}/0a1b2c3d-00000000.parquet")
    with pytest.raises(FileNotFoundError, match=r"00000000\.parquet"):
        dataset[1]


def test_the_error_names_a_damaged_file(tmp_path):
    write_output(str(tmp_path), [[(4, 4)] * 3])
    (path,) = tmp_path.glob("*.parquet")
    data = bytearray(path.read_bytes())
    data[40:400] = bytes(360)
    path.write_bytes(data)
    with pytest.raises(JobFailed, match=r"00000000\.parquet is damaged"):
        list(open_latents(str(tmp_path)))
    with pytest.raises(JobFailed, match=r"00000000\.parquet is damaged"):
        list(iter_rows(str(tmp_path)))


def test_the_error_names_a_file_that_no_job_wrote(tmp_path):
    write_output(str(tmp_path), [[(4, 4)] * 3])
    pq.write_table(pa.table({"x": [1]}), tmp_path / "mine.parquet")
    with pytest.raises(UsageError, match=r"mine\.parquet has no column key"):
        len(open_latents(str(tmp_path)))
