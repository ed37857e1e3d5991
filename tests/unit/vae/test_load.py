"""Load VAEs by path, by id and by the command line's settings; every refusal is one sentence."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from inpaint_encode import load_vae
from inpaint_encode.errors import UsageError
from inpaint_encode.settings import VaeSource
from inpaint_encode.vae import registry
from inpaint_encode.vae.load import parse_vae_source
from inpaint_encode.vae.properties import weights_sha256
from tests.metadata import row_metadata
from tests.vaes import saved


def test_a_path_a_pipelines_folder_and_the_settings_load_the_same_weights(vae_folder, tmp_path):
    expected = weights_sha256(load_vae(vae_folder))
    (tmp_path / "vae").symlink_to(vae_folder)
    assert weights_sha256(load_vae(Path(vae_folder))) == expected
    assert weights_sha256(load_vae(f"file://{vae_folder}")) == expected
    assert weights_sha256(load_vae(tmp_path, subfolder="vae")) == expected
    assert weights_sha256(load_vae(VaeSource(vae=str(tmp_path), subfolder="vae"))) == expected


def test_the_settings_pass_on_every_option(tmp_path):
    folder = saved("AutoencoderKLFlux2", tmp_path)
    for form in ("packed", "plain"):
        by_settings = load_vae(VaeSource(vae=folder, flux2_latents=form))
        assert by_settings.config == load_vae(folder, flux2_latents=form).config
        assert by_settings.config.flux2_latents == form
    with pytest.raises(UsageError, match="--vae-family is for single files"):
        load_vae(VaeSource(vae=folder, vae_family="sdxl"))


def test_loading_by_path_needs_neither_settings_nor_a_command_line_library(vae_folder):
    """Nor does diffusers log anything, and its verbosity stays as it was."""
    code = (
        "import sys; from inpaint_encode import load_vae; load_vae(sys.argv[1]); "
        "from diffusers.utils.logging import get_verbosity; "
        "print(get_verbosity(), *{'inpaint_encode.settings', 'cyclopts', 'ray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, vae_folder], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("30", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", {"vae": "org/name"}),
        ("org/name/vae@v1", {"vae": "org/name", "subfolder": "vae", "revision": "v1"}),
        ("/a/folder@1", {"vae": "/a/folder@1"}),
        ("s3://bucket/a/b/c.safetensors", {"vae": "s3://bucket/a/b/c.safetensors", "vae_family": "sdxl"}),
    ],
)
def test_a_recorded_source_is_parsed_to_settings(text, expected):
    metadata = row_metadata(vae_family="sdxl")
    source = parse_vae_source(text, metadata)
    assert source == VaeSource(flux2_latents="plain", **expected)


def test_missing_folders_and_files_are_usage_errors(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for source, sentence in [
        ("/no/such/vae", "no such folder or file on this node, and it is not a valid Hugging Face hub id"),
        ("no/such/vae.safetensors", "no such folder or file"),
        ("org/name", "HF_HUB_OFFLINE is set"),
        (str(tmp_path), "cannot be loaded: .*config.json"),
    ]:
        with pytest.raises(UsageError, match=f"--vae {source}.* {sentence}"):
            load_vae(source)


def test_unsupported_classes_are_refused_by_name(tmp_path, vae_folder, monkeypatch):
    config = json.loads((Path(vae_folder) / "config.json").read_text())
    for name in ("AutoencoderKLCogVideoX", "AutoencoderKLOfTomorrow"):
        (tmp_path / "config.json").write_text(json.dumps(config | {"_class_name": name}))
        with pytest.raises(UsageError, match=f"class {name}, which is not supported; .* AutoencoderKL, .*Wan"):
            load_vae(tmp_path)
    monkeypatch.setattr(registry, "VAE_CLASSES", registry.VAE_CLASSES | {name: registry.VAE_CLASSES["AutoencoderKL"]})
    with pytest.raises(UsageError, match=rf"{name}, which diffusers [\d.]+ does not have; it has AutoencoderKL, "):
        load_vae(tmp_path)


def test_incomplete_weights_are_refused(vae_folder, tmp_path):
    for path in Path(vae_folder).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors["encoder.conv_in.bias"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"lacks 1 weight \(the first: encoder.conv_in.bias\); give a complete VAE"):
        load_vae(tmp_path)


def test_options_of_files_and_folders_do_not_mix(vae_folder):
    with pytest.raises(UsageError, match="--vae-family is for single files"):
        load_vae(vae_folder, vae_family="sdxl")
    with pytest.raises(UsageError, match="is a single file; leave out --subfolder"):
        load_vae(f"{vae_folder}/diffusion_pytorch_model.safetensors", subfolder="vae")
    with pytest.raises(UsageError, match="is a single file, which must end in"):
        load_vae(f"{vae_folder}/config.json")
    with pytest.raises(UsageError, match="flux2_latents is packed or plain, not 'tiled'"):
        load_vae(vae_folder, flux2_latents="tiled")


@pytest.mark.parametrize("name", ["model.CKPT", "vae.pt", "s3://bucket/vae.pth", "model.bin", "vae.pickle", "vae.pkl"])
def test_pickles_are_refused_and_the_error_says_how_to_convert_them(name):
    with pytest.raises(UsageError, match=r"is a pickle, .*convert it once: torch.load\(file, weights_only=True\)"):
        load_vae(name)


def test_a_folder_of_pickles_is_refused(vae_folder, tmp_path):
    (tmp_path / "config.json").write_bytes((Path(vae_folder) / "config.json").read_bytes())
    torch.save({}, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(UsageError, match=r"diffusion_pytorch_model.bin is a pickle"):
        load_vae(tmp_path)
