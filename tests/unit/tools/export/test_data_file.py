"""The Ray task of one data file returns its errors instead of raising them."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inpaint_encode.output.lease import hold
from inpaint_encode.reader import Output
from inpaint_encode.tools.export.data_file import EXPORT_WORK, export_data_file
from inpaint_encode.tools.export.destination import Destination
from tests.exports import write_chunk


@pytest.fixture
def plain(tmp_path):
    folder = str(tmp_path / "out")
    write_chunk(folder, 0, ["a", "b"])
    return folder


def flip_a_byte_of_a_latent(path: Path) -> None:
    group = pq.read_metadata(path).row_group(0)
    columns = {group.column(at).path_in_schema: group.column(at) for at in range(group.num_columns)}
    latents = columns["samples.data.list.element"]
    data = bytearray(path.read_bytes())
    data[latents.data_page_offset + latents.total_compressed_size - 20] ^= 1
    path.write_bytes(data)


def test_a_worker_returns_its_errors(plain, tmp_path):
    def fatal(destination: str, token: str, version: str | None = None) -> str:
        (file,) = Output.open(plain).files
        work = pa.Table.from_pylist([{"path": file.path, "version": version or file.version}], EXPORT_WORK)
        there = Destination(destination, token)
        return export_data_file(work, source=plain, destination=there, to="comfyui", has_frames=False).to_pylist()[0][
            "fatal"
        ]

    with hold(f"{tmp_path}/to/_lease.json", print) as lease:
        assert "has changed since it was listed" in fatal(f"{tmp_path}/to", lease.token, "other")
        assert "another run has taken over" in fatal(f"{tmp_path}/to", "other")
        (tmp_path / "to/a.latent").mkdir()
        assert f"{tmp_path}/to/a.latent cannot be written" in fatal(f"{tmp_path}/to", lease.token)
        (tmp_path / "to/a.latent").rmdir()
        path = Path(plain, Output.open(plain).files[0].path)
        flip_a_byte_of_a_latent(path)
        assert f"{path} cannot be exported" in (sentence := fatal(f"{tmp_path}/to", lease.token))
        assert "checksum" in sentence
