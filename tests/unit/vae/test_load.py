"""Where a VAE comes from: folders, files and buckets, and every refusal as one sentence."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from inpaint_encode import encode_for_inpaint, load_vae
from inpaint_encode.errors import UsageError
from inpaint_encode.settings import VaeSource
from inpaint_encode.stores import storage
from inpaint_encode.vae import node_cache, registry
from inpaint_encode.vae.encode import posterior, warm_up
from inpaint_encode.vae.node_cache import on_this_node
from inpaint_encode.vae.properties import vae_metadata, weights_sha256
from inpaint_encode.vae.scaling import by_channel, check_scalable, to_scaled
from tests.original_layouts import latent_diffusion
from tests.vaes import saved, small_vae


@pytest.fixture
def bucket(s3, tmp_path, monkeypatch):
    """A prefix of the S3 server, and a cache of the test's own."""
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


def test_a_folder_in_a_bucket_is_brought_here_once(vae_folder, bucket, tmp_path, monkeypatch):
    (tmp_path / "pipeline" / "vae").mkdir(parents=True)
    for path in Path(vae_folder).iterdir():
        (tmp_path / "pipeline" / "vae" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "pipeline" / "vae" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"not wanted")
    uri = bucket(tmp_path / "pipeline", *(f"vae/{path.name}" for path in (tmp_path / "pipeline" / "vae").iterdir()))
    expected = weights_sha256(load_vae(VaeSource(vae=vae_folder)))
    downloaded: list[str] = []
    read_range = storage.read_range
    monkeypatch.setattr(storage, "read_range", lambda uri, *part: (downloaded.append(uri), read_range(uri, *part))[1])
    source = VaeSource(vae=uri, subfolder="vae")
    with ThreadPoolExecutor(4) as threads:
        (place,) = set(threads.map(on_this_node, [source] * 4))
    assert len(downloaded) == 2
    assert weights_sha256(load_vae(source)) == expected
    (copy,) = copies(tmp_path)
    assert sorted(path.name for path in copy.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert on_this_node(VaeSource(vae=f"{uri}/vae/")) == place == str(copy)
    assert len(downloaded) == 2


def test_a_file_in_a_bucket_and_what_takes_its_place(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(node_cache, "_PIECE", 2**14)
    config = {"block_out_channels": (32, 32), "down_block_types": ("DownEncoderBlock2D",) * 2}
    for seed in (1, 2):
        torch.manual_seed(seed)
        vae = diffusers.AutoencoderKL(**config, up_block_types=("UpDecoderBlock2D",) * 2)
        tensors = latent_diffusion(vae.state_dict(), levels=2)
        save_file({name: one.contiguous() for name, one in tensors.items()}, tmp_path / "vae.safetensors")
        uri = bucket(tmp_path / "vae.safetensors")
        assert weights_sha256(load_vae(VaeSource(vae=uri))) == weights_sha256(vae)
        assert len(copies(tmp_path)) == seed


def test_a_download_that_breaks_off_leaves_nothing(vae_folder, bucket, tmp_path, monkeypatch):
    uri = bucket(Path(vae_folder), "config.json", "diffusion_pytorch_model.safetensors")
    read_range = storage.read_range

    def changed_meanwhile(one, start, length):
        if one.endswith(".safetensors"):
            storage.write(one, b"x" * length)
        return read_range(one, start, length)

    monkeypatch.setattr(node_cache, "_PIECE", 2**14)
    monkeypatch.setattr(storage, "read_range", changed_meanwhile)
    with pytest.raises(Exception, match="could not be brought to this node"):
        load_vae(VaeSource(vae=uri))
    assert copies(tmp_path) == []


def test_what_is_not_in_a_bucket(bucket, vae_folder):
    uri = bucket(Path(vae_folder), "config.json").rpartition("/")[0]
    for missing in (f"{uri}/no-such-folder", f"{uri}/no-such.safetensors"):
        with pytest.raises(UsageError, match=f"--vae {missing} cannot be loaded"):
            load_vae(VaeSource(vae=missing))


def test_what_is_not_on_this_node(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for source, sentence in [
        ("/no/such/vae", "no such folder or file on this node, and it is no hub id"),
        ("no/such/vae.safetensors", "no such folder or file"),
        ("org/name", "HF_HUB_OFFLINE is set"),
        (str(tmp_path), "cannot be loaded: .*config.json"),
    ]:
        with pytest.raises(UsageError, match=f"--vae {source}.* {sentence}"):
            load_vae(VaeSource(vae=source))


@pytest.mark.parametrize("name", ["model.CKPT", "vae.pt", "s3://bucket/vae.pth", "model.bin", "vae.pickle", "vae.pkl"])
def test_pickles_are_refused_with_the_way_out(name):
    with pytest.raises(UsageError, match=r"is a pickle, .*convert it once: torch.load\(file, weights_only=True\)"):
        load_vae(VaeSource(vae=name))


def test_a_folder_of_pickles_is_refused(vae_folder, tmp_path, bucket):
    (tmp_path / "config.json").write_bytes((Path(vae_folder) / "config.json").read_bytes())
    torch.save({}, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(UsageError, match=r"diffusion_pytorch_model.bin is a pickle"):
        load_vae(VaeSource(vae=str(tmp_path)))
    uri = bucket(tmp_path, "config.json", "diffusion_pytorch_model.bin")
    with pytest.raises(UsageError, match=r"diffusion_pytorch_model.bin is a pickle"):
        load_vae(VaeSource(vae=uri))


def test_unknown_classes_are_refused_by_name(tmp_path, vae_folder, monkeypatch):
    config = json.loads((Path(vae_folder) / "config.json").read_text())
    for name in ("AutoencoderKLCogVideoX", "AutoencoderKLOfTomorrow"):
        (tmp_path / "config.json").write_text(json.dumps(config | {"_class_name": name}))
        with pytest.raises(UsageError, match=f"class {name}, which is not known here; known are AutoencoderKL, .*Wan"):
            load_vae(VaeSource(vae=str(tmp_path)))
    monkeypatch.setattr(registry, "FAMILIES", registry.FAMILIES | {name: registry.FAMILIES["AutoencoderKL"]})
    with pytest.raises(UsageError, match=rf"{name}, which diffusers [\d.]+ does not have; it has AutoencoderKL, "):
        load_vae(VaeSource(vae=str(tmp_path)))


def test_weights_that_lack_some_are_refused(vae_folder, tmp_path):
    for path in Path(vae_folder).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors["encoder.conv_in.bias"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"lacks 1 of its weights, the first is encoder.conv_in.bias"):
        load_vae(VaeSource(vae=str(tmp_path)))


def test_options_of_files_and_folders_do_not_mix(vae_folder):
    with pytest.raises(UsageError, match="--vae-family is for single files"):
        load_vae(VaeSource(vae=vae_folder, vae_family="sdxl"))
    with pytest.raises(UsageError, match="is a single file, which must end in"):
        load_vae(VaeSource(vae=f"{vae_folder}/diffusion_pytorch_model.safetensors", subfolder="vae"))


def test_a_configuration_that_lies_is_found_by_an_encode(vae_folder):
    vae = load_vae(VaeSource(vae=vae_folder))
    vae.register_to_config(block_out_channels=(8, 8, 8))
    with pytest.raises(
        UsageError,
        match=r"--vae: the configuration promises 4 channels at 1/4 of the size, but 2 images of 8 x 12 became",
    ):
        warm_up(vae)


def test_other_inputs_than_colours_are_refused():
    vae = diffusers.AutoencoderKL(in_channels=4, block_out_channels=(32,))
    with pytest.raises(UsageError, match="--vae takes 4 channels, and an image has 3 for its class, AutoencoderKL"):
        warm_up(vae)


def test_flux2_in_both_forms(tmp_path):
    """Packed and plain latents hold the same numbers; the statistics outlive a cast to half precision."""
    folder = saved("AutoencoderKLFlux2", tmp_path)
    packed, plain = (load_vae(VaeSource(vae=folder, flux2_latents=form)) for form in ("packed", "plain"))
    pixels = torch.rand(2, 32, 48, 3)
    few, many = posterior(plain, pixels), posterior(packed, pixels)
    facts = vae_metadata(plain, VaeSource(vae=folder))
    assert (facts.vae_scale_factor, facts.crop_multiple, facts.latent_channels, facts.latent_form) == (
        8,
        16,
        32,
        "unscaled",
    )
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (facts.latents_mean, facts.latents_std))
    unpacked = torch.nn.functional.pixel_shuffle(many.mean * std + mean, 2)
    assert torch.allclose(unpacked, few.mean, atol=1e-5)
    assert torch.allclose(torch.nn.functional.pixel_shuffle(many.logvar + 2 * std.log(), 2), few.logvar, atol=1e-5)
    with pytest.raises(UsageError, match="--flux2-latents packed"):
        check_scalable(facts)
    whole = vae_metadata(packed, VaeSource(vae=folder))
    assert (whole.vae_scale_factor, whole.crop_multiple, whole.latent_channels, whole.latent_form) == (
        16,
        16,
        128,
        "packed",
    )
    assert whole.latents_std == facts.latents_std
    assert to_scaled(many.mean, whole) is many.mean
    half = vae_metadata(packed.to(torch.float16), VaeSource(vae=folder))
    assert (half.latents_mean, half.latents_std) == (facts.latents_mean, facts.latents_std)
    assert encode_for_inpaint(torch.rand(1, 40, 40, 3), torch.zeros(1, 40, 40), plain).samples.shape == (1, 32, 4, 4)


def test_scaling_by_statistics_and_latents_in_the_scaled_space():
    wan = vae_metadata(small_vae("Wan 2.2"), VaeSource(vae="x"))
    assert by_channel(wan.latents_std, torch.ones(1)) is by_channel(wan.latents_std, torch.zeros(1))
    assert torch.allclose(to_scaled(torch.ones(1, 48, 2, 2), wan), torch.tensor((1 - 0.1) / 2.0))
    tiny = vae_metadata(small_vae("AutoencoderTiny"), VaeSource(vae="x"))
    assert tiny.latent_form == "scaled"
    assert to_scaled(wan_like := torch.ones(1, 4, 2, 2), tiny) is wan_like
