"""Every VAE class against diffusers itself, on real files through the stages of a job, without Ray; forms of Flux.2."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import pixel_shuffle

from inpaint_encode import encode_for_inpaint, load_vae
from inpaint_encode.core.chunk import EncodedPair, Pair, encode_chunk
from inpaint_encode.core.decode import PairDecoder
from inpaint_encode.core.encoder import BatchEncoder
from inpaint_encode.core.geometry import Sizing
from inpaint_encode.errors import UsageError
from inpaint_encode.settings import VaeSource
from inpaint_encode.sources import PairReader
from inpaint_encode.stores import storage
from inpaint_encode.vae.encode import posterior
from inpaint_encode.vae.latents import check_scalable, to_scaled
from inpaint_encode.vae.registry import VAE_CLASSES, crop_multiple, latent_channels, vae_metadata, vae_scale_factor
from tests.metadata import metadata_for
from tests.vaes import SMALL, encoded, saved, small_vae

SIZES = ((71, 107), (71, 107), (64, 96), (40, 133))
"""No multiples of any ratio but one; two of one size, so that a batch of two is encoded."""

READING = {"access": storage.DEFAULT_ACCESS, "max_bytes": 2**20, "threads": 2}

each_vae = pytest.mark.parametrize("name", SMALL)


def close(found, expected) -> bool:
    """1e-5, of the value where it is above 1: some random weights give large ones."""
    return torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Teams of threads spin where others want the same cores."""
    torch.set_num_threads(1)


PUBLISHED = [
    ("SD 1.x, SD 2, SDXL", "AutoencoderKL", {"block_out_channels": (128, 256, 512, 512), "latent_channels": 4}),
    ("SD 3, Flux.1", "AutoencoderKL", {"block_out_channels": (128, 256, 512, 512), "latent_channels": 16}),
    ("x4 upscaler", "AutoencoderKL", {"block_out_channels": (128, 256, 512), "latent_channels": 4}),
    (
        "Flux.2, packed",
        "AutoencoderKLFlux2",
        {"block_out_channels": (128, 256, 512, 512), "latent_channels": 32, "patch_size": (2, 2)},
    ),
    (
        "Flux.2, plain",
        "AutoencoderKLFlux2",
        {"block_out_channels": (128, 256, 512, 512), "latent_channels": 32, "patch_size": (2, 2)}
        | {"flux2_latents": "plain"},
    ),
    ("TAESD", "AutoencoderTiny", {"encoder_block_out_channels": (64,) * 4, "latent_channels": 4}),
    (
        "Sana (DC-AE)",
        "AutoencoderDC",
        {"encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024), "latent_channels": 32},
    ),
    ("Qwen-Image", "AutoencoderKLQwenImage", {"dim_mult": (1, 2, 4, 4), "z_dim": 16}),
    ("Qwen-Image 2.1", "AutoencoderKLQwenImage21", {"dim_mult": (1, 2, 4, 8, 8), "z_dim": 64}),
    ("Wan 2.1", "AutoencoderKLWan", {"dim_mult": (1, 2, 4, 4), "z_dim": 16}),
    ("Wan 2.2", "AutoencoderKLWan", {"dim_mult": (1, 2, 4, 4), "z_dim": 48, "patch_size": 2}),
    ("HunyuanImage 2.1", "AutoencoderKLHunyuanImage", {"spatial_compression_ratio": 32, "latent_channels": 64}),
    (
        "asymmetric VQGAN for SD 1.x",
        "AsymmetricAutoencoderKL",
        {"down_block_out_channels": (128, 256, 512, 512), "latent_channels": 4},
    ),
]
"""Keys of published configurations that the registry reads."""


def test_the_table_in_the_readme_is_the_registry_s():
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    lines = [_table_line(*published) for published in PUBLISHED]
    assert {kind for _, kind, _ in PUBLISHED} == set(VAE_CLASSES)
    assert [line for line in lines if line not in readme] == []


def test_registry_and_latents_import_no_library_of_the_job():
    """The reader imports both."""
    code = (
        "import sys, inpaint_encode.vae.registry, inpaint_encode.vae.latents; "
        "print(*{'pydantic', 'cyclopts', 'diffusers', 'ray', 'PIL', 's3fs', 'botocore'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def _table_line(models: str, kind: str, config: dict) -> str:
    vae_class = VAE_CLASSES[kind]
    vae = type(kind, (), {"config": config})()
    numbers = latent_channels(vae), vae_scale_factor(vae), crop_multiple(vae)
    has = "yes" if vae_class.output_attr == "latent_dist" else "no"
    return f"| {' | '.join(map(str, (models, f'`{kind}`', *numbers, has, vae_class.precision, vae_class.checked)))} |"


def test_every_vae_class_has_a_small_model():
    assert {kind for kind, *_ in SMALL.values()} == set(VAE_CLASSES)


@each_vae
def test_files_become_what_diffusers_gives_for_each_image(name, tmp_path):
    """Fetched, decoded, cropped, grayed and encoded by the job's own stages, in chunks of several sizes."""
    _, _, ratio, multiple, channels = SMALL[name]
    source = VaeSource(vae=saved(name, tmp_path / "vae"))
    decoder = PairDecoder(sizing=Sizing(multiple=multiple))
    results = encode_chunk(_pairs_in(tmp_path), PairReader(), decoder, _opened(source, "cpu"), batch_size=8)
    vae = small_vae(name)
    for index, (result, size) in enumerate(zip(results, SIZES, strict=True)):
        assert isinstance(result, EncodedPair), result
        height, width = (side // multiple * multiple for side in size)
        assert result.samples.shape == (channels, height // ratio, width // ratio)
        expected = encoded(name, vae, _greyed(tmp_path, index, multiple))
        assert close(torch.from_numpy(result.samples), expected)


def _opened(source: VaeSource, device: str) -> BatchEncoder:
    vae = load_vae(source)
    return BatchEncoder(vae, metadata_for(vae, samples_dtype="float32"), torch.device(device), compiled=False)


def _pairs_in(folder: Path) -> list[Pair]:
    """Write images and masks; return their pairs."""
    rng = np.random.default_rng(0)
    pairs = []
    for index, (height, width) in enumerate(SIZES):
        image, mask = folder / f"{index}.png", folder / f"{index}-mask.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(image)
        Image.fromarray(rng.integers(0, 2, (height, width), np.uint8) * 255).save(mask)
        pairs.append(Pair(str(index), str(image), str(mask)))
    return pairs


def _greyed(folder: Path, index: int, multiple: int) -> torch.Tensor:
    """The crop of an image with the repainted pixels gray, ``[H, W, 3]`` in 0..1, by the contract's words."""
    image = np.asarray(Image.open(folder / f"{index}.png")) / np.float32(255)
    mask = np.asarray(Image.open(folder / f"{index}-mask.png")) > 127
    image[mask] = 0.5
    (top, height), (left, width) = ((side % multiple // 2, side // multiple * multiple) for side in mask.shape)
    return torch.from_numpy(image[top : top + height, left : left + width])


def test_packed_and_plain_latents_of_flux2_have_the_same_values(tmp_path):
    """The statistics stay exact when the model is cast to half precision."""
    folder = saved("AutoencoderKLFlux2", tmp_path)
    source = VaeSource(vae=folder)
    packing_vae, plain_vae = (load_vae(folder, flux2_latents=form) for form in ("packed", "plain"))
    pixels = torch.rand(2, 32, 48, 3)
    plain, packed = posterior(plain_vae, pixels), posterior(packing_vae, pixels)
    of_plain, of_packed = vae_metadata(plain_vae, source), vae_metadata(packing_vae, source)
    assert (of_plain.vae_scale_factor, of_plain.crop_multiple, of_plain.latent_channels) == (8, 16, 32)
    assert (of_packed.vae_scale_factor, of_packed.crop_multiple, of_packed.latent_channels) == (16, 16, 128)
    assert (of_plain.latent_form, of_packed.latent_form) == ("unscaled", "packed")
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (of_plain.latents_mean, of_plain.latents_std))
    assert torch.allclose(pixel_shuffle(packed.mean * std + mean, 2), plain.mean, atol=1e-5)
    assert torch.allclose(pixel_shuffle(packed.logvar + 2 * std.log(), 2), plain.logvar, atol=1e-5)
    with pytest.raises(UsageError, match=r"--scaled needs packed Flux.2 latents, .* --flux2-latents packed"):
        check_scalable(of_plain)
    assert of_packed.latents_std == of_plain.latents_std
    assert to_scaled(packed.mean, of_packed) is packed.mean
    half = vae_metadata(packing_vae.to(torch.float16), source)
    assert (half.latents_mean, half.latents_std) == (of_plain.latents_mean, of_plain.latents_std)
    shape = encode_for_inpaint(torch.rand(1, 40, 40, 3), torch.zeros(1, 40, 40), plain_vae).samples.shape
    assert shape == (1, 32, 4, 4)
