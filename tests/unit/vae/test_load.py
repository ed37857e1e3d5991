"""Load VAEs by path, by id, by settings and from a bucket, one copy per node; every refusal is one sentence."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from inpaint_encode import load_vae
from inpaint_encode.errors import UsageError
from inpaint_encode.settings import VaeSource
from inpaint_encode.stores import storage
from inpaint_encode.vae import registry
from inpaint_encode.vae.load import download, parse_vae_source
from inpaint_encode.vae.registry import weights_sha256
from tests.metadata import row_metadata
from tests.original_layouts import latent_diffusion
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
    del config["_class_name"]
    (tmp_path / "nameless").mkdir()
    (tmp_path / "nameless" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"nameless: its config\.json has no _class_name; give a VAE's own folder"):
        load_vae(tmp_path / "nameless")
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


@pytest.fixture
def bucket(s3, tmp_path, monkeypatch):
    """Returns a function that puts files below a prefix of the S3 server; the node's cache is the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    prefix = s3.uri("vaes-" + tmp_path.name)

    def put(path: Path, *names: str) -> str:
        for name in names or (path.name,):
            where = path / name if names else path
            storage.write(f"{prefix}/{name}", where.read_bytes())
        return prefix if names else f"{prefix}/{path.name}"

    return put


def copies(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache" / "inpaint-encode").iterdir() if path.is_dir()]


def test_a_folder_in_a_bucket_is_downloaded_once(vae_folder, bucket, tmp_path, monkeypatch):
    (tmp_path / "pipeline" / "vae").mkdir(parents=True)
    for path in Path(vae_folder).iterdir():
        (tmp_path / "pipeline" / "vae" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "pipeline" / "vae" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"not wanted")
    uri = bucket(tmp_path / "pipeline", *(f"vae/{path.name}" for path in (tmp_path / "pipeline" / "vae").iterdir()))
    expected = weights_sha256(load_vae(vae_folder))
    downloaded: list[str] = []
    read_range = storage.read_range
    monkeypatch.setattr(storage, "read_range", lambda uri, *part: (downloaded.append(uri), read_range(uri, *part))[1])
    with ThreadPoolExecutor(4) as threads:
        (folder,) = set(threads.map(download, [f"{uri}/vae"] * 4))
    assert len(downloaded) == 2
    assert weights_sha256(load_vae(uri, subfolder="vae")) == expected
    (copy,) = copies(tmp_path)
    assert sorted(path.name for path in copy.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert weights_sha256(load_vae(f"{uri}/vae/")) == expected
    assert folder == copy
    assert len(downloaded) == 2


def test_a_changed_file_in_a_bucket_gets_another_copy(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("inpaint_encode.vae.load._RANGE_BYTES", 2**14)
    config = {"block_out_channels": (32, 32), "down_block_types": ("DownEncoderBlock2D",) * 2}
    for seed in (1, 2):
        torch.manual_seed(seed)
        vae = diffusers.AutoencoderKL(**config, up_block_types=("UpDecoderBlock2D",) * 2)
        tensors = latent_diffusion(vae.state_dict(), levels=2)
        save_file({name: one.contiguous() for name, one in tensors.items()}, tmp_path / "vae.safetensors")
        uri = bucket(tmp_path / "vae.safetensors")
        assert weights_sha256(load_vae(uri)) == weights_sha256(vae)
        assert len(copies(tmp_path)) == seed


def test_a_download_that_fails_leaves_no_copy(vae_folder, bucket, tmp_path, monkeypatch):
    uri = bucket(Path(vae_folder), "config.json", "diffusion_pytorch_model.safetensors")
    read_range = storage.read_range

    def changed_meanwhile(one, start, length):
        if one.endswith(".safetensors"):
            storage.write(one, b"x" * length)
        return read_range(one, start, length)

    monkeypatch.setattr("inpaint_encode.vae.load._RANGE_BYTES", 2**14)
    monkeypatch.setattr(storage, "read_range", changed_meanwhile)
    with pytest.raises(Exception, match="could not be copied to this node"):
        load_vae(uri)
    assert copies(tmp_path) == []


def test_missing_objects_are_usage_errors(bucket, vae_folder):
    uri = bucket(Path(vae_folder), "config.json").rpartition("/")[0]
    for missing in (f"{uri}/no-such-folder", f"{uri}/no-such.safetensors"):
        with pytest.raises(UsageError, match=f"--vae {missing} cannot be loaded"):
            load_vae(missing)


def test_a_folder_of_pickles_in_a_bucket_is_refused(tmp_path, bucket):
    (tmp_path / "config.json").write_text("{}")
    torch.save({}, tmp_path / "diffusion_pytorch_model.bin")
    uri = bucket(tmp_path, "config.json", "diffusion_pytorch_model.bin")
    with pytest.raises(UsageError, match=r"diffusion_pytorch_model.bin is a pickle"):
        load_vae(uri)


@pytest.fixture
def changed_vae(vae_folder, tmp_path):
    """Return a function that copies a VAE with other values in its config.json, or another config.json."""

    def change(text: str | None = None, **values: object) -> Path:
        for path in Path(vae_folder).iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(text if text is not None else json.dumps(config | values))
        return tmp_path

    return change


class Ran:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("shard", ["weights.bin", "../x.safetensors", "/x.safetensors", "a/b.safetensors", "", None, 3])
def test_an_index_may_only_name_safetensors_of_its_folder(changed_vae, tmp_path, shard):
    folder = changed_vae()
    torch.save({"encoder.conv_in.bias": Ran(tmp_path / "ran")}, folder / "weights.bin")
    index = {"metadata": {"total_size": 1}, "weight_map": {"encoder.conv_in.bias": shard}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match=r"index\.json names .*, which is not a \.safetensors file of its folder"):
        load_vae(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": []}', "{", "[" * 100_000, "\xff"])
def test_an_index_that_is_not_valid_is_a_usage_error(changed_vae, text):
    folder = changed_vae()
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(text, encoding="latin-1")
    with pytest.raises(UsageError, match=f"--vae {folder}"):
        load_vae(folder)


def test_weights_in_several_files_are_loaded(vae_folder, changed_vae):
    folder = changed_vae()
    load_vae(vae_folder).save_pretrained(folder, max_shard_size="20kB")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    assert len([*folder.glob("*-of-*.safetensors")]) > 1
    assert weights_sha256(load_vae(folder)) == weights_sha256(load_vae(vae_folder))


@pytest.mark.parametrize(
    "values",
    [
        {"block_out_channels": [2**16, 2**16]},
        {"block_out_channels": [2**30]},
        {"block_out_channels": [8] * 100_000, "down_block_types": ["DownEncoderBlock2D"] * 100_000},
        {"layers_per_block": 10**9},
        {"layers_per_block": -1},
        {"layers_per_block": "2"},
        {"latent_channels": None},
        {"latent_channels": 10**400},
        {"norm_num_groups": 0},
        {"down_block_types": ["NoBlock"]},
        {"down_block_types": {"a": "b"}},
        {"scaling_factor": "x"},
        {"scaling_factor": float("nan")},
        {"latents_mean": ["x"]},
        {"_class_name": "x" * 10**6},
        {"_class_name": ["AutoencoderKL"]},
        {"act_fn": "x"},
        {"quantization_config": {"load_in_8bit": True}},
    ],
    ids=lambda values: f"{values!s:.40}",
)
def test_a_hostile_configuration_is_a_usage_error(changed_vae, values):
    begun = time.process_time()
    folder = changed_vae(**values)
    with pytest.raises(UsageError, match=f"--vae {folder}") as raised:
        load_vae(folder)
    assert len(str(raised.value)) < 1_500
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("text", ["", "[]", "null", "3", "[" * 100_000, '{"a":' * 100_000, "\x00", " " * 2**24 + "{}"])
def test_a_configuration_that_is_no_object_is_a_usage_error(changed_vae, text):
    with pytest.raises(UsageError, match="--vae"):
        load_vae(changed_vae(text))


def test_a_cut_file_in_the_cache_is_downloaded_again(vae_folder, bucket, tmp_path):
    uri = bucket(Path(vae_folder), "config.json", "diffusion_pytorch_model.safetensors")
    expected = weights_sha256(load_vae(uri))
    (copy,) = copies(tmp_path)
    weights = copy / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert weights_sha256(load_vae(uri)) == expected
    assert copies(tmp_path) == [copy]


def test_a_damaged_file_in_the_cache_is_named_with_what_to_do(vae_folder, bucket, tmp_path):
    uri = bucket(Path(vae_folder), "config.json", "diffusion_pytorch_model.safetensors")
    load_vae(uri)
    (copy,) = copies(tmp_path)
    weights = copy / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(b"\xff" * weights.stat().st_size)
    with pytest.raises(UsageError, match=f"the copy of its files is {copy}: delete it to download them again"):
        load_vae(uri)
