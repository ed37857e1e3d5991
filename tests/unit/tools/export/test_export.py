"""Each format, by the libraries that read it: every value of every row, whatever its key, and no other bytes twice."""

import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.output.lease import hold
from inpaint_encode.output.parquet import parquet_bytes
from inpaint_encode.reader import Output
from inpaint_encode.reader.conventions import unscaled
from inpaint_encode.settings import ExportOptions
from inpaint_encode.sources.tars import _MEMBER_NAME
from inpaint_encode.stores import storage
from inpaint_encode.tools.export.chunk import FILE, export_file
from inpaint_encode.tools.export.destination import Destination
from inpaint_encode.tools.export.formats import SUFFIXES, format_of
from inpaint_encode.tools.export.names import path_of
from inpaint_encode.tools.export.run import export_output
from inpaint_encode.vae.scaling import to_scaled
from tests.exports import (
    FULL,
    METADATA,
    by_key,
    exported,
    load_latent,
    load_mask,
    members_of,
    metadata_of,
    of_rows,
    write_chunk,
)
from tests.metadata import changed

KEYS = [
    "a/042",
    "a/042/1",
    "a/042_mask",
    "a/042.latent/x",
    "v1.5/x.y_z",
    "../up",
    "/abs//x",
    "ü 大.jpg",
    "a\nb:c?",
    "%41",
]
ODD = {
    "../up": "%2E%2E/up",
    "/abs//x": "%/abs/%/x",
    ".": "%2E",
    "..": "%2E%2E",
    "a/.hidden": "a/.hidden",
    "": "%",
    "a\nb:c?": "a%0Ab%3Ac%3F",
    "%41": "%2541",
    "a.latent/x": "a%2Elatent/x",
    "a.json/b.png/c.png": "a%2Ejson/b%2Epng/c.png",
    "_export/x": "%5Fexport/x",
    "_exported/x": "_exported/x",
    "_MG_0042": "_MG_0042",
    "a/_tmp-1": "a/%5Ftmp-1",
    "https://x/y": "https%3A/%/x/y",
}


def export(output, to: str, destination, *, video: bool = False) -> None:
    """Export every data file of an output, each as a worker does."""
    with hold(f"{destination}/_lease.json", print) as lease:
        for file in Output.open(str(output)).files:
            work = pa.Table.from_pylist([{"path": file.path, "version": file.version}], FILE)
            there = Destination(str(destination), lease.token)
            (receipt,) = export_file(work, source=str(output), destination=there, to=to, video=video).to_pylist()
            assert receipt["fatal"] is None


@pytest.fixture(scope="module", params=["tensor", "packed"])
def output(request, tmp_path_factory):
    """Two data files and one without rows; all columns that there can be."""
    folder = str(tmp_path_factory.mktemp("output"))
    for chunk, keys in enumerate((KEYS[:6], KEYS[6:], [])):
        write_chunk(folder, chunk, keys, mask_encoding=request.param, **FULL)
    return folder


@pytest.mark.parametrize("key", ODD)
def test_what_cannot_stand_in_a_name_is_escaped(key):
    assert path_of(key) == ODD[key]


def test_a_name_that_was_shortened_is_no_other_key_s():
    """Such as that of a key whose sign for an escape is the first of the other's hash."""
    hashes = ((key, hashlib.sha256(key.encode()).hexdigest()) for key in (f"{at:0201}" for at in count()))
    long, its_hash = next((key, found) for key, found in hashes if found.startswith("25"))
    assert path_of(f"{long[:183]}%{its_hash[2:16]}") != path_of(long)


KEY = st.text(st.sampled_from("aé大./_%:-\\\n\x7f"), max_size=12) | st.lists(
    st.sampled_from(["", ".", "..", "a", "_export", "_tmp-", "a.json", "a.latent", "a_mask.png", "ü" * 150]), max_size=4
).map("/".join)


@given(st.sets(KEY, max_size=8), st.sampled_from(list(SUFFIXES)))
def test_no_key_leads_out_of_the_folder_or_to_another_s_files(keys, to):
    form = format_of(to, ["samples", "original_samples", "noise_mask"])
    names = [name for key in sorted(keys) for name in form.names(key)]
    assert len(set(names)) == len(names)
    folders = {name[:at] for name in names for at in range(len(name)) if name[at] == "/"}
    assert not folders & set(names)
    for name in names:
        parts = name.split("/")
        assert not {"", ".", ".."} & set(parts)
        assert parts[0] != "_export"
        assert max(len(part.encode()) for part in parts) < 256
        assert not re.search(r"[\x00-\x1f\\:]|(^|/)_tmp-", name)
        if form.is_tar:
            assert _MEMBER_NAME.match(name)["sample"] in {path_of(key, dots=False) for key in keys}


def test_a_latent_is_the_row_s_as_load_latent_reads_it_and_the_mask_is_beside_it(output, tmp_path):
    export(output, "comfyui", tmp_path)
    files, rows = of_rows(str(tmp_path)), by_key(output)
    assert len(files) == 3 * len(rows) == 3 * len(KEYS)
    for key, row in rows.items():
        path = path_of(key)
        assert np.array_equal(load_latent(files[f"{path}.latent"]), row["samples"][None].astype(np.float32))
        assert np.array_equal(load_latent(files[f"_original/{path}.latent"]), row["original_samples"][None])
        assert np.array_equal(load_mask(files[f"{path}_mask.png"]), row["noise_mask"][0])
        assert metadata_of(files[f"{path}.latent"])["key"] == key
    assert {"a/042.latent", "a/042_mask.png", "a/042/1.latent", "a/042_mask.latent", "a/042_mask_mask.png"} <= set(
        files
    )


def test_a_clip_of_one_frame_has_its_axis(output, tmp_path):
    export(output, "comfyui", tmp_path, video=True)
    row = by_key(output)["a/042"]
    assert np.array_equal(load_latent((tmp_path / "a/042.latent").read_bytes()), row["samples"][None, :, None])


def test_a_tar_is_a_webdataset_of_the_rows(output, tmp_path):
    export(output, "webdataset", tmp_path)
    tars = sorted(map(str, tmp_path.glob("*.tar")))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode("l"))
    rows = by_key(output)
    assert [sample["json"]["key"] for sample in samples] == list(rows) == KEYS
    for sample, row in zip(samples, rows.values(), strict=True):
        assert sample["__key__"] == path_of(row["key"], dots=False)
        for name in ("samples", "original_samples", "latent_mask"):
            assert sample[f"{name}.npy"].dtype == row[name].dtype == np.float16
            assert np.array_equal(sample[f"{name}.npy"], row[name])
        assert np.array_equal(sample["noise_mask.png"], row["noise_mask"][0])
        plain = {name: value for name, value in row.items() if not isinstance(value, np.ndarray)}
        assert sample["json"] == {**plain, "inpaint_encode": Output.open(output).metadata.to_dict()}
    assert [name for tar in tars for name in members_of(Path(tar).read_bytes())][:2] == [
        "a/042.json",
        "a/042.noise_mask.png",
    ]


def test_a_safetensors_file_has_a_row_s_tensors_and_its_other_columns_as_strings(output, tmp_path):
    export(output, "safetensors", tmp_path)
    rows = by_key(output)
    assert len(of_rows(str(tmp_path))) == len(rows)
    for key, row in rows.items():
        with safe_open(tmp_path / f"{path_of(key)}.safetensors", "np") as file:
            there = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            strings = file.metadata()
        assert set(there) == {"samples", "original_samples", "noise_mask", "latent_mask"}
        for name, values in there.items():
            assert (values.dtype, values.shape) == (row[name].dtype, row[name].shape)
            assert np.array_equal(values, row[name])
        assert (strings["key"], strings["caption"]) == (key, row["caption"])
        assert (int(strings["crop_top"]), json.loads(strings["tags"])) == (1, row["tags"])
        assert np.float32(strings["mask_coverage"]) == np.float32(row["mask_coverage"])
        assert int(strings["scaling_factor"]) == row["scaling_factor"]
        assert (strings["latent_form"], "shift_factor" in strings) == ("unscaled", False)
        assert json.loads(strings["inpaint_encode"])["scaling_factor"] == 0.18215


def test_float32_stays_float32(tmp_path):
    write_chunk(f"{tmp_path}/out", 0, ["a"], samples_dtype="float32")
    for to in SUFFIXES:
        export(tmp_path / "out", to, tmp_path / to)
    (row,) = by_key(f"{tmp_path}/out").values()
    assert np.array_equal(load_latent((tmp_path / "comfyui/a.latent").read_bytes())[0], row["samples"])
    (sample,) = webdataset.WebDataset(str(next((tmp_path / "webdataset").glob("*.tar"))), shardshuffle=False).decode()
    assert sample["samples.npy"].dtype == np.float32
    with safe_open(tmp_path / "safetensors/a.safetensors", "np") as file:
        assert np.array_equal(file.get_tensor("samples"), row["samples"])


SCALINGS = [
    {"scaling_factor": 0.18215},
    {"scaling_factor": 0.3611, "shift_factor": 0.1159},
    {"scaling_factor": 0.5, "latents_mean": (-1.6, 4.2, 2.5, -0.6), "latents_std": (8.4, 6.2, 5.6, 5.1)},
    {"scaling_factor": None, "latents_mean": (0.1, 0.2, 0.3, 0.4), "latents_std": (2.0, 3.0, 4.0, 5.0)},
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_scaled_latents_are_as_the_vae_gave_them_again(scaling, tmp_path):
    metadata = changed(METADATA, **scaling)
    facts = metadata.vae
    latent = np.random.default_rng(3).standard_normal((4, 5, 6)).astype(np.float32) * 5
    scaled = to_scaled(torch.from_numpy(latent)[None], facts)[0].numpy()
    changes = {**scaling, "scaled": True, "latent_form": "scaled"}
    assert np.abs(unscaled(torch.from_numpy(scaled), changed(METADATA, **changes)).numpy() - latent).max() < 4e-6
    write_chunk(f"{tmp_path}/out", 0, ["a"], **changes)
    export(tmp_path / "out", "comfyui", tmp_path / "to")
    data = (tmp_path / "to/a.latent").read_bytes()
    (row,) = by_key(f"{tmp_path}/out").values()
    again = to_scaled(torch.from_numpy(load_latent(data)), replace(facts, latent_form="unscaled"))[0]
    assert np.array_equal(again.numpy().astype(np.float16), row["samples"])
    assert (metadata_of(data)["latent_form"], json.loads(metadata_of(data)["inpaint_encode"])["scaled"]) == (
        "unscaled",
        False,
    )


def test_packed_latents_are_what_comfyui_has(tmp_path):
    packed = {"vae_class": "AutoencoderKLFlux2", "latent_form": "packed", "vae_scale_factor": 16, "crop_multiple": 16}
    write_chunk(f"{tmp_path}/out", 0, ["a"], scaled=True, latents_mean=(1.0,), latents_std=(2.0,), **packed)
    export(tmp_path / "out", "comfyui", tmp_path / "to")
    (row,) = by_key(f"{tmp_path}/out").values()
    assert np.array_equal(load_latent((tmp_path / "to/a.latent").read_bytes())[0], row["samples"])


def test_of_moments_the_means_are_the_latent(tmp_path):
    write_chunk(f"{tmp_path}/out", 0, ["a"], posterior="moments", also_original=True)
    export(tmp_path / "out", "comfyui", tmp_path / "to")
    (row,) = by_key(f"{tmp_path}/out").values()
    assert row["samples"].shape[0] == 8
    for folder, name in (("", "samples"), ("_original/", "original_samples")):
        latent = load_latent((tmp_path / f"to/{folder}a.latent").read_bytes())
        assert np.array_equal(latent[0], row[name][:4])
    export(tmp_path / "out", "safetensors", tmp_path / "all")
    with safe_open(tmp_path / "all/a.safetensors", "np") as file:
        assert file.get_tensor("samples").shape == row["samples"].shape
        assert json.loads(file.metadata()["inpaint_encode"])["posterior"] == "moments"


CODE = """
import hashlib, sys
from inpaint_encode.tools.export.formats import SUFFIXES, Facts, format_of, tar_bytes
from inpaint_encode.reader import Output, iter_rows
for to in SUFFIXES:
    for row in iter_rows(sys.argv[1]):
        form = format_of(to, list(row))
        contents = form.contents(row, Facts(Output.open(sys.argv[1]).metadata, False))
        made = tar_bytes(zip(form.names(row["key"]), contents))
        print(to, ascii(row["key"]), hashlib.sha256(made).hexdigest())
"""


def test_another_process_makes_the_same_bytes(tmp_path):
    """Of a library that puts names in an order by chance, two of one process could agree by luck."""
    write_chunk(str(tmp_path), 0, KEYS, **FULL)
    runs = [subprocess.Popen([sys.executable, "-c", CODE, str(tmp_path)], stdout=subprocess.PIPE) for _ in range(2)]
    printed = [run.communicate()[0] for run in runs]
    assert printed[0] == printed[1]
    assert printed[0].count(b"\n") == 3 * len(KEYS)


@pytest.fixture
def plain(tmp_path):
    folder = str(tmp_path / "out")
    write_chunk(folder, 0, ["a", "b"])
    return folder


def refused(output: str, to: str, destination) -> str:
    with pytest.raises(UsageError) as error:
        export_output(output, ExportOptions(to=to, output=str(destination)), print)
    return str(error.value)


def test_what_comfyui_has_not_is_refused_by_name(tmp_path):
    tiny, flux2, other = str(tmp_path / "tiny"), str(tmp_path / "flux2"), str(tmp_path / "other")
    write_chunk(tiny, 0, ["a"], vae_class="AutoencoderTiny", latent_form="scaled", scaling_factor=1.0)
    write_chunk(flux2, 0, ["a"], vae_class="AutoencoderKLFlux2", crop_multiple=16)
    write_chunk(other, 0, ["a"], vae_class="NewVae")
    assert "latents of AutoencoderTiny are scaled as those of the model" in refused(tiny, "comfyui", tmp_path / "to")
    assert "encode with --flux2-latents packed" in refused(flux2, "comfyui", tmp_path / "to")
    assert "the VAE of the output is of class NewVae" in refused(other, "comfyui", tmp_path / "to")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(("vae_class", "frames"), [("AutoencoderKLWan", True), ("AutoencoderKL", False)])
def test_whether_there_are_frames_is_the_family_s(vae_class, frames):
    from inpaint_encode.tools.export.run import _has_frames

    assert _has_frames(changed(METADATA, vae_class=vae_class)) is frames


def test_a_destination_in_the_output_is_refused(plain):
    for inside in (plain, f"{plain}/", f"{plain}/_export", f"file://{plain}/x"):
        assert "is in the output that is exported" in refused(plain, "webdataset", inside)
    assert "--output ftp://x/y" in refused(plain, "webdataset", "ftp://x/y")


def test_files_that_an_export_would_write_over_are_refused_by_name(plain, tmp_path):
    """The masks of a layout of pairs are named as those for ComfyUI."""
    storage.write(f"{tmp_path}/to/x/042_mask.png", b"mine")
    storage.write(f"{tmp_path}/to/x/042.png", b"mine")
    sentence = refused(plain, "comfyui", tmp_path / "to")
    assert "holds 1 files that are named like those of --to comfyui" in sentence
    assert "such as x/042_mask.png" in sentence
    assert list(exported(str(tmp_path / "to"))) == ["x/042.png", "x/042_mask.png"]


def test_parquet_that_encode_did_not_write_is_refused_by_name(tmp_path):
    file = tmp_path / "out/x.parquet"
    storage.write(str(file), parquet_bytes(pa.table({"key": ["a"]})))
    assert f"{file} is no data file of encode" in refused(f"{tmp_path}/out", "safetensors", tmp_path / "to")
    file.write_bytes(b"PAR1 and no more")
    with pytest.raises(JobFailed, match=r"x\.parquet is not whole \(Parquet magic bytes not found"):
        refused(f"{tmp_path}/out", "safetensors", tmp_path / "to")


def flip_a_byte_of_a_latent(path: Path) -> None:
    group = pq.read_metadata(path).row_group(0)
    columns = {group.column(at).path_in_schema: group.column(at) for at in range(group.num_columns)}
    latents = columns["samples.data.list.element"]
    data = bytearray(path.read_bytes())
    data[latents.data_page_offset + latents.total_compressed_size - 20] ^= 1
    path.write_bytes(data)


def test_a_worker_says_what_it_cannot_export(plain, tmp_path):
    def fatal(destination: str, token: str, version: str | None = None) -> str:
        (file,) = Output.open(plain).files
        work = pa.Table.from_pylist([{"path": file.path, "version": version or file.version}], FILE)
        there = Destination(destination, token)
        return export_file(work, source=plain, destination=there, to="comfyui", video=False).to_pylist()[0]["fatal"]

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


@pytest.mark.parametrize("done", [True, False])
def test_who_has_lost_the_lease_removes_nothing(plain, tmp_path, done):
    to = tmp_path / "to"
    export(plain, "safetensors", to)
    (note,) = (to / "_export").iterdir()
    note.write_text(json.dumps({**json.loads(note.read_text()), "done": done}))
    before = exported(str(to))
    with hold(f"{to}/_lease.json", print), pytest.raises(JobFailed, match="another run has taken over"):
        Destination(str(to), "other").settle({})
    assert exported(str(to)) == before


def test_notes_that_are_damaged_are_named(plain, tmp_path):
    storage.write(f"{tmp_path}/to/_export.json", b"{")
    with pytest.raises(JobFailed, match=r"to/_export.json is damaged"):
        export_output(plain, ExportOptions(to="safetensors", output=f"{tmp_path}/to"), print)
