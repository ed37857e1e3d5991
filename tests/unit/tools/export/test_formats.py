"""Each format, read by the libraries it is made for: every value, the same bytes each time, valid file names."""

import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from inpaint_encode.reader import Output
from inpaint_encode.reader.conventions import unscaled
from inpaint_encode.sources.tar_index import _MEMBER_NAME
from inpaint_encode.tools.export.formats import SUFFIXES, key_to_path, select_format
from inpaint_encode.vae.latents import to_scaled
from tests.exports import (
    FULL,
    METADATA,
    by_key,
    export,
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


@pytest.fixture(scope="module", params=["tensor", "packed"])
def output(request, tmp_path_factory):
    """Two data files with all optional columns, and one without rows."""
    folder = str(tmp_path_factory.mktemp("output"))
    for chunk, keys in enumerate((KEYS[:6], KEYS[6:], [])):
        write_chunk(folder, chunk, keys, mask_encoding=request.param, **FULL)
    return folder


def test_comfyui_files_hold_the_row_s_latent_and_mask(output, tmp_path):
    export(output, "comfyui", tmp_path)
    files, rows = of_rows(str(tmp_path)), by_key(output)
    assert len(files) == 3 * len(rows) == 3 * len(KEYS)
    for key, row in rows.items():
        path = key_to_path(key)
        assert np.array_equal(load_latent(files[f"{path}.latent"]), row["samples"][None].astype(np.float32))
        assert np.array_equal(load_latent(files[f"_original/{path}.latent"]), row["original_samples"][None])
        assert np.array_equal(load_mask(files[f"{path}_mask.png"]), row["noise_mask"][0])
        assert metadata_of(files[f"{path}.latent"])["key"] == key
    assert {"a/042.latent", "a/042_mask.png", "a/042/1.latent", "a/042_mask.latent", "a/042_mask_mask.png"} <= set(
        files
    )


def test_latents_of_video_vaes_have_an_axis_of_frames(output, tmp_path):
    export(output, "comfyui", tmp_path, has_frames=True)
    row = by_key(output)["a/042"]
    assert np.array_equal(load_latent((tmp_path / "a/042.latent").read_bytes()), row["samples"][None, :, None])


def test_a_tar_is_a_webdataset_of_the_rows(output, tmp_path):
    export(output, "webdataset", tmp_path)
    tars = sorted(map(str, tmp_path.glob("*.tar")))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode("l"))
    rows = by_key(output)
    assert [sample["json"]["key"] for sample in samples] == list(rows) == KEYS
    for sample, row in zip(samples, rows.values(), strict=True):
        assert sample["__key__"] == key_to_path(row["key"], dots=False)
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


def test_safetensors_files_hold_tensors_and_other_columns_as_strings(output, tmp_path):
    export(output, "safetensors", tmp_path)
    rows = by_key(output)
    assert len(of_rows(str(tmp_path))) == len(rows)
    for key, row in rows.items():
        with safe_open(tmp_path / f"{key_to_path(key)}.safetensors", "np") as file:
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
def test_scaled_latents_are_unscaled_for_comfyui(scaling, tmp_path):
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


def test_packed_latents_are_exported_as_stored(tmp_path):
    packed = {"vae_class": "AutoencoderKLFlux2", "latent_form": "packed", "vae_scale_factor": 16, "crop_multiple": 16}
    write_chunk(f"{tmp_path}/out", 0, ["a"], scaled=True, latents_mean=(1.0,), latents_std=(2.0,), **packed)
    export(tmp_path / "out", "comfyui", tmp_path / "to")
    (row,) = by_key(f"{tmp_path}/out").values()
    assert np.array_equal(load_latent((tmp_path / "to/a.latent").read_bytes())[0], row["samples"])


def test_comfyui_gets_the_means_of_moments(tmp_path):
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
from inpaint_encode.tools.export.formats import SUFFIXES, select_format, tar_bytes
from inpaint_encode.reader import Output, iter_rows
for to in SUFFIXES:
    for row in iter_rows(sys.argv[1]):
        form = select_format(to, list(row), Output.open(sys.argv[1]).metadata)
        made = tar_bytes(form.files_of(row))
        print(to, ascii(row["key"]), hashlib.sha256(made).hexdigest())
"""


def test_bytes_are_the_same_in_every_process(tmp_path):
    """safetensors orders names at random; within one process two files could agree by chance."""
    write_chunk(str(tmp_path), 0, KEYS, **FULL)
    runs = [subprocess.Popen([sys.executable, "-c", CODE, str(tmp_path)], stdout=subprocess.PIPE) for _ in range(2)]
    printed = [run.communicate()[0] for run in runs]
    assert printed[0] == printed[1]
    assert printed[0].count(b"\n") == 3 * len(KEYS)


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


@pytest.mark.parametrize("key", ODD)
def test_forbidden_characters_are_escaped(key):
    assert key_to_path(key) == ODD[key]


def test_a_shortened_name_collides_with_no_other_key():
    """Not even with a key whose escaped sign begins like the hash of the other."""
    hashes = ((key, hashlib.sha256(key.encode()).hexdigest()) for key in (f"{at:0201}" for at in count()))
    long, its_hash = next((key, found) for key, found in hashes if found.startswith("25"))
    assert key_to_path(f"{long[:183]}%{its_hash[2:16]}") != key_to_path(long)


KEY = st.text(st.sampled_from("aé大./_%:-\\\n\x7f"), max_size=12) | st.lists(
    st.sampled_from(["", ".", "..", "a", "_export", "_tmp-", "a.json", "a.latent", "a_mask.png", "ü" * 150]), max_size=4
).map("/".join)


@given(st.sets(KEY, max_size=8), st.sampled_from(list(SUFFIXES)))
def test_keys_stay_in_the_folder_and_share_no_file(keys, to):
    form = select_format(to, ["samples", "original_samples", "noise_mask"], METADATA)
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
            assert _MEMBER_NAME.match(name)["sample"] in {key_to_path(key, dots=False) for key in keys}
