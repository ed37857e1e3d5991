"""Files of a VAE in a bucket: one copy per node and version, without pickles."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from inpaint_encode import load_vae
from inpaint_encode.errors import UsageError
from inpaint_encode.stores import storage
from inpaint_encode.vae.download import download
from inpaint_encode.vae.properties import weights_sha256
from tests.original_layouts import latent_diffusion


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
    monkeypatch.setattr("inpaint_encode.vae.download._RANGE_BYTES", 2**14)
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

    monkeypatch.setattr("inpaint_encode.vae.download._RANGE_BYTES", 2**14)
    monkeypatch.setattr(storage, "read_range", changed_meanwhile)
    with pytest.raises(Exception, match="could not be copied to this node"):
        load_vae(uri)
    assert copies(tmp_path) == []


def test_missing_objects_are_usage_errors(bucket, vae_folder):
    uri = bucket(Path(vae_folder), "config.json").rpartition("/")[0]
    for missing in (f"{uri}/no-such-folder", f"{uri}/no-such.safetensors"):
        with pytest.raises(UsageError, match=f"--vae {missing} cannot be loaded"):
            load_vae(missing)


def test_a_folder_of_pickles_is_refused(tmp_path, bucket):
    (tmp_path / "config.json").write_text("{}")
    torch.save({}, tmp_path / "diffusion_pytorch_model.bin")
    uri = bucket(tmp_path, "config.json", "diffusion_pytorch_model.bin")
    with pytest.raises(UsageError, match=r"diffusion_pytorch_model.bin is a pickle"):
        load_vae(uri)
