"""Exports that are refused before anything is written; the Ray task of a data file returns its errors."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.output.lease import acquire_lease
from inpaint_encode.output.parquet import parquet_bytes
from inpaint_encode.reader import Output
from inpaint_encode.settings import ExportOptions
from inpaint_encode.stores import storage
from inpaint_encode.tools.export.destination import Destination
from inpaint_encode.tools.export.pipeline import EXPORT_WORK, comfyui_has_frames, export_data_file, export_output
from tests.exports import METADATA, exported, write_chunk
from tests.metadata import changed


@pytest.fixture
def plain(tmp_path):
    folder = str(tmp_path / "out")
    write_chunk(folder, 0, ["a", "b"])
    return folder


def refused(output: str, to: str, destination) -> str:
    with pytest.raises(UsageError) as error:
        export_output(output, ExportOptions(to=to, output=str(destination)), print)
    return str(error.value)


def test_latents_that_comfyui_cannot_use_are_refused(tmp_path):
    tiny, flux2, other = str(tmp_path / "tiny"), str(tmp_path / "flux2"), str(tmp_path / "other")
    write_chunk(tiny, 0, ["a"], vae_class="AutoencoderTiny", latent_form="scaled", scaling_factor=1.0)
    write_chunk(flux2, 0, ["a"], vae_class="AutoencoderKLFlux2", crop_multiple=16)
    write_chunk(other, 0, ["a"], vae_class="NewVae")
    assert "latents of AutoencoderTiny are already scaled" in refused(tiny, "comfyui", tmp_path / "to")
    assert "encode with --flux2-latents packed" in refused(flux2, "comfyui", tmp_path / "to")
    assert "the VAE of the output is of class NewVae" in refused(other, "comfyui", tmp_path / "to")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(("vae_class", "frames"), [("AutoencoderKLWan", True), ("AutoencoderKL", False)])
def test_video_vaes_have_frames(vae_class, frames):
    assert comfyui_has_frames(changed(METADATA, vae_class=vae_class)) is frames


def test_a_destination_inside_the_output_is_refused(plain):
    for inside in (plain, f"{plain}/", f"{plain}/_export", f"file://{plain}/x"):
        assert "is inside LATENTS" in refused(plain, "webdataset", inside)
    assert "--output ftp://x/y" in refused(plain, "webdataset", "ftp://x/y")


def test_files_that_an_export_would_overwrite_are_refused(plain, tmp_path):
    """A source of pairs may have masks with the names of ComfyUI's."""
    storage.write(f"{tmp_path}/to/x/042_mask.png", b"mine")
    storage.write(f"{tmp_path}/to/x/042.png", b"mine")
    sentence = refused(plain, "comfyui", tmp_path / "to")
    assert "contains 1 file ending in .latent or _mask.png that export did not write" in sentence
    assert "for example x/042_mask.png" in sentence
    assert list(exported(str(tmp_path / "to"))) == ["x/042.png", "x/042_mask.png"]


def test_parquet_files_of_others_are_refused(tmp_path):
    file = tmp_path / "out/x.parquet"
    storage.write(str(file), parquet_bytes(pa.table({"key": ["a"]})))
    assert f"{file} is not a data file of an encode job" in refused(f"{tmp_path}/out", "safetensors", tmp_path / "to")
    file.write_bytes(b"PAR1 and no more")
    with pytest.raises(JobFailed, match=r"x\.parquet is damaged \(the file does not end as a Parquet file does"):
        refused(f"{tmp_path}/out", "safetensors", tmp_path / "to")


def test_a_damaged_note_is_named(plain, tmp_path):
    storage.write(f"{tmp_path}/to/_export.json", b"{")
    with pytest.raises(JobFailed, match=r"to/_export.json is damaged"):
        export_output(plain, ExportOptions(to="safetensors", output=f"{tmp_path}/to"), print)


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

    with acquire_lease(f"{tmp_path}/to/_lease.json", print) as lease:
        assert "has changed since it was listed" in fatal(f"{tmp_path}/to", lease.token, "other")
        assert "another run has taken over" in fatal(f"{tmp_path}/to", "other")
        (tmp_path / "to/a.latent").mkdir()
        assert f"{tmp_path}/to/a.latent cannot be written" in fatal(f"{tmp_path}/to", lease.token)
        (tmp_path / "to/a.latent").rmdir()
        path = Path(plain, Output.open(plain).files[0].path)
        flip_a_byte_of_a_latent(path)
        assert f"{path} cannot be exported" in (sentence := fatal(f"{tmp_path}/to", lease.token))
        assert "checksum" in sentence
