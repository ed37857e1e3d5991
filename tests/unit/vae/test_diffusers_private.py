"""Without the private functions of diffusers, only single files in an original layout are refused."""

import logging

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders import single_file_utils
from safetensors.torch import save_file

from inpaint_encode import encode_for_inpaint, load_vae
from inpaint_encode.core.encoder import BatchEncoder
from inpaint_encode.errors import UsageError
from inpaint_encode.vae.properties import weights_sha256
from tests.metadata import metadata_for
from tests.original_layouts import latent_diffusion

PRIVATE = (
    "convert_ldm_vae_checkpoint",
    "convert_wan_vae_to_diffusers",
    "convert_autoencoder_dc_checkpoint_to_diffusers",
)


@pytest.fixture
def without_private_functions(monkeypatch):
    for name in PRIVATE:
        monkeypatch.delattr(single_file_utils, name)


@pytest.fixture
def log_records(monkeypatch):
    """Records of the package's and of diffusers' loggers; the latter's do not reach the root logger."""
    records = []
    for name in ("inpaint_encode", "diffusers"):
        handler = logging.Handler(logging.INFO)
        handler.emit = records.append
        monkeypatch.setattr(logging.getLogger(name), "handlers", [handler])
    return records


@pytest.fixture(scope="module")
def original_vae():
    torch.manual_seed(0)
    levels = {"block_out_channels": (32, 32), "down_block_types": ("DownEncoderBlock2D",) * 2}
    return AutoencoderKL(**levels, up_block_types=("UpDecoderBlock2D",) * 2).eval()


def test_a_folder_loads_casts_and_encodes_without_a_log_line(vae_folder, without_private_functions, log_records):
    vae = load_vae(vae_folder)
    latents = encode_for_inpaint(torch.rand(1, 32, 32, 3), torch.zeros(1, 32, 32), vae)
    assert bool(latents.samples.isfinite().all())
    BatchEncoder(vae, metadata_for(vae, compute_dtype="bfloat16"), torch.device("cpu"), compiled=False).check()
    assert log_records == []


def test_a_single_file_with_names_of_diffusers_loads(original_vae, tmp_path, without_private_functions):
    save_file(original_vae.state_dict(), tmp_path / "vae.safetensors")
    assert weights_sha256(load_vae(tmp_path / "vae.safetensors")) == weights_sha256(original_vae)


def test_a_single_file_with_original_names_is_refused(original_vae, tmp_path, without_private_functions):
    tensors = latent_diffusion(original_vae.state_dict(), levels=2)
    save_file({name: one.contiguous() for name, one in tensors.items()}, tmp_path / "vae.safetensors")
    sentence = rf"cannot be converted: diffusers [\d.]+ has no {PRIVATE[0]}; give the model's diffusers folder"
    with pytest.raises(UsageError, match=sentence):
        load_vae(tmp_path / "vae.safetensors")
