"""Single files in every supported layout give the weights of the diffusers model, without network."""

import json
import logging
import socket
import struct
import time

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders import single_file_utils
from safetensors.torch import save_file

from inpaint_encode import encode_for_inpaint, load_vae
from inpaint_encode.core.encoder import BatchEncoder
from inpaint_encode.errors import UsageError
from inpaint_encode.settings import VaeSource
from inpaint_encode.vae.encode import warm_up
from inpaint_encode.vae.latents import check_scalable, to_scaled
from inpaint_encode.vae.registry import vae_metadata, weights_sha256
from tests.metadata import metadata_for
from tests.original_layouts import dc_ae, flux2, latent_diffusion, wan_21, wan_22
from tests.vaes import BLOCKS, WAN

WIDE = {**BLOCKS, "block_out_channels": (32,) * 4, "layers_per_block": 1}
UPSCALER = {name: WIDE[name][:3] for name in ("down_block_types", "up_block_types", "block_out_channels")}
SANA = {
    "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "encoder_block_out_channels": (4, 4, 8, 32, 32, 64),
    "decoder_block_out_channels": (8, 8, 8, 32, 32, 32),
    "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
    "decoder_layers_per_block": (3,) * 6,
    "encoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "decoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "downsample_block_type": "conv",
    "upsample_block_type": "interpolate",
}
SD3 = {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
WAN_22 = {"base_dim": 4, "decoder_base_dim": 8, "z_dim": 48, "is_residual": True, "patch_size": 2} | dict.fromkeys(
    ("in_channels", "out_channels"), 12
)

HUNYUAN = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 16,
    "block_out_channels": (32,) * 6,
    "layers_per_block": 1,
    "spatial_compression_ratio": 32,
    "sample_size": 384,
}


def inside(prefix):
    return lambda tensors: {prefix + name: tensor for name, tensor in latent_diffusion(tensors).items()}


def old_attention(tensors):
    parts = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    for new, old in parts.items():
        tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
    return tensors


LAYOUTS = {
    "AutoencoderKL, original": ("AutoencoderKL", WIDE, latent_diffusion),
    "AutoencoderKL, in a checkpoint": ("AutoencoderKL", WIDE, inside("first_stage_model.")),
    "AutoencoderKL, in a checkpoint of ComfyUI": ("AutoencoderKL", WIDE | SD3, inside("vae.")),
    "AutoencoderKL, diffusers": ("AutoencoderKL", WIDE, dict),
    "AutoencoderKL, diffusers of 2022": ("AutoencoderKL", WIDE, old_attention),
    "SD 3 and Flux.1, original": ("AutoencoderKL", WIDE | SD3, latent_diffusion),
    "x4 upscaler, original": ("AutoencoderKL", WIDE | UPSCALER, lambda tensors: latent_diffusion(tensors, levels=3)),
    "Flux.2, original": ("AutoencoderKLFlux2", WIDE, flux2),
    "Flux.2, diffusers": ("AutoencoderKLFlux2", WIDE, dict),
    "Wan 2.1, original": ("AutoencoderKLWan", {"base_dim": 4}, wan_21),
    "Wan 2.1, diffusers": ("AutoencoderKLWan", {"base_dim": 4}, dict),
    "Wan 2.2, original": ("AutoencoderKLWan", WAN_22, wan_22),
    "Sana, original": ("AutoencoderDC", SANA, dc_ae),
    "Sana, diffusers": ("AutoencoderDC", SANA, dict),
    "TAESD, diffusers": ("AutoencoderTiny", {"latent_channels": 16}, dict),
}


@pytest.fixture
def network_off(monkeypatch):
    def refuse(*_arguments):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def random_vae(kind: str, config: dict):
    torch.manual_seed(0)
    return getattr(diffusers, kind)(**config).eval()


@pytest.fixture
def write(tmp_path):
    def written(tensors: dict, name: str = "vae.safetensors") -> str:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / name)
        return str(tmp_path / name)

    return written


def metadata_of(path: str, **options):
    source = VaeSource(vae=path, **options)
    return vae_metadata(load_vae(source), source)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_loads_as_the_model_that_was_saved(layout, write, network_off):
    kind, config, naming = LAYOUTS[layout]
    vae = random_vae(kind, config)
    found = load_vae(write(naming(vae.state_dict())))
    assert type(found).__name__ == kind
    assert weights_sha256(found) == weights_sha256(vae)
    warm_up(found)
    pixels = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        inputs = pixels[:, :, None] if kind == "AutoencoderKLWan" else pixels
        answers = [one.encode(inputs, return_dict=False)[0] for one in (found, vae)]
    values = [getattr(answer, "parameters", answer) for answer in answers]
    assert torch.allclose(*values, rtol=1e-5, atol=1e-5)  # weights elsewhere in memory are summed in another order


CONTEXT = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
JOINT = "model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight"
EDM = dict.fromkeys(("edm_mean", "edm_std"), (1, 4, 1, 1))
DOUBLE = "model.diffusion_model.double_blocks.0.img_attn.qkv.weight"


@pytest.mark.parametrize(
    ("config", "denoiser", "family", "scaling"),
    [
        ({}, {}, "", (None, None)),
        ({}, {}, "sd1", (0.18215, None)),
        ({}, {}, "sdxl", (0.13025, None)),
        ({}, {CONTEXT: (640, 768)}, "", (0.18215, None)),
        ({}, {CONTEXT: (640, 1024)}, "sd1", (0.18215, None)),
        ({}, {CONTEXT: (640, 2048)}, "", (0.13025, None)),
        (SD3, {}, "", (None, None)),
        (SD3, {}, "sd3", (1.5305, 0.0609)),
        (SD3, {JOINT: (8, 8)}, "", (1.5305, 0.0609)),
        (SD3, {DOUBLE: (8, 8)}, "", (0.3611, 0.1159)),
        ({}, {CONTEXT: (640, 2048)} | EDM, "", (None, None)),
        (UPSCALER, {}, "", (0.08333, None)),
        (UPSCALER, {CONTEXT: (512, 1024)}, "", (0.08333, None)),
    ],
)
def test_the_scaling_comes_from_shapes_denoiser_or_family(config, denoiser, family, scaling, write):
    vae = random_vae("AutoencoderKL", WIDE | config)
    levels = len((WIDE | config)["block_out_channels"])
    tensors = {f"first_stage_model.{name}": one for name, one in latent_diffusion(vae.state_dict(), levels).items()}
    path = write(tensors | {name: torch.zeros(shape) for name, shape in denoiser.items()})
    metadata = metadata_of(path, vae_family=family)
    assert (metadata.scaling_factor, metadata.shift_factor) == scaling
    if scaling == (None, None):
        with pytest.raises(UsageError, match="--vae-family"):
            check_scalable(metadata)
    else:
        samples = torch.ones(1, metadata.latent_channels, 2, 2)
        assert to_scaled(samples, metadata).flatten()[0] == pytest.approx((1 - (scaling[1] or 0)) * scaling[0])


@pytest.mark.parametrize(
    ("config", "denoiser", "family"),
    [
        ({}, {}, "sd3"),
        (SD3, {}, "sdxl"),
        ({}, {CONTEXT: (640, 768)}, "sdxl"),
        ({}, {CONTEXT: (640, 2048)} | EDM, "sdxl"),
        (UPSCALER, {CONTEXT: (512, 1024)}, "sd1"),
    ],
)
def test_a_family_that_does_not_fit_is_refused(config, denoiser, family, write):
    tensors = inside("first_stage_model.")(random_vae("AutoencoderKL", WIDE | config).state_dict())
    path = write(tensors | {name: torch.zeros(shape) for name, shape in denoiser.items()})
    with pytest.raises(UsageError, match=f"--vae-family {family} does not fit --vae"):
        load_vae(path, vae_family=family)


@pytest.mark.parametrize(
    ("kind", "config", "naming"),
    [
        ("AutoencoderKLQwenImage21", WAN | {"decoder_base_dim": 4}, dict),
        ("AutoencoderKLHunyuanImage", HUNYUAN, dict),
        ("AutoencoderKL", WIDE | {"latent_channels": 64}, latent_diffusion),  # HunyuanImage's names and channels
    ],
)
def test_a_model_in_an_unsupported_layout_is_refused(kind, config, naming, write):
    path = write(naming(random_vae(kind, config).state_dict()))
    with pytest.raises(UsageError, match=r"has no VAE in a supported layout \(.* diffusers folder"):
        load_vae(path)


def test_an_incomplete_or_other_file_is_refused(write, tmp_path):
    tensors = latent_diffusion(random_vae("AutoencoderKL", WIDE).state_dict())
    lacking = {name: tensor for name, tensor in tensors.items() if name != "decoder.up.0.block.0.norm1.weight"}
    other = {name: torch.zeros(3) for name in ("lora.up", "lora.down")}
    (tmp_path / "text.safetensors").write_text("no safetensors")
    for path, sentence in [
        (write(lacking), "is not a complete VAE, .*up_blocks.3.resnets.0.norm1.weight"),
        (write(other, "lora.safetensors"), "has no VAE .* first tensors are lora.down, lora.up"),
        (str(tmp_path / "text.safetensors"), "is not a safetensors file"),
    ]:
        with pytest.raises(UsageError, match=sentence):
            load_vae(path)


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


def hostile(header: object, length: int | None = None, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensors(shapes: dict[str, list[int]], size: int = 0) -> dict:
    """Return a header of tensors of ``size`` bytes, all at the start of the data."""
    return {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, size]} for name, shape in shapes.items()}


KL = {
    "encoder.conv_in.weight": [2**20, 3, 3, 0],
    "encoder.conv_out.weight": [2**16, 8, 0, 3],
    "decoder.conv_out.weight": [3, 2**20, 3, 0],
    "encoder.down.0.block.0.conv1.weight": [2**40, 0, 3, 3],
}
SMALL_KL = {name: [9, 9, 9, 0] for name in KL}
DEEP = {f"encoder.down.{level}.block.0.conv1.weight": [0] for level in range(5_000)}
LONG = {f"encoder.down.0.block.{layer}.conv1.weight": [2**16, 0] for layer in range(5_000)}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        hostile(b"{}", 2**63),
        hostile(b"{}", 2**64 - 1),
        hostile(b"{}", 2**40),
        hostile(b'{"a":' + b"[" * 1_000_000),
        hostile(b"[]"),
        hostile(b'{"\xff": 1}'),
        hostile(tensors({"a": [1], "b": [1]}, 4), data=b"1234"),
        hostile(tensors({"a": [9]}, 36), data=b"1234"),
        hostile(tensors({"a": [2**62, 4]})),
        hostile(tensors({"a": [-1]})),
        hostile(tensors(KL)),
        hostile(tensors({name: [0] for name in KL})),
        hostile(tensors({"encoder.conv_in.weight": []}, 4), data=b"1234"),
        hostile(tensors(SMALL_KL | DEEP)),
        hostile(tensors(SMALL_KL | LONG)),
    ],
)
def test_a_hostile_file_is_a_usage_error(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    begun = time.process_time()
    with pytest.raises(UsageError, match=r"x\.safetensors") as raised:
        load_vae(tmp_path / "x.safetensors")
    assert len(str(raised.value)) < 1_500
    assert time.process_time() - begun < 5
