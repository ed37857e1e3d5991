"""diffusers' inpainting pipelines, small and with random weights, run on our rows and on image and mask.

Latents are drawn from a row's moments with the pipeline's generator. Both latents are then equal, up to the rounding
that depends on the order of a convolution's sums.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from inpaint_encode.errors import UsageError
from inpaint_encode.reader import Output
from inpaint_encode.reader.conventions import for_comfyui, for_diffusers, inpaint_input, latent_mask, pack_latent
from tests.local import encode_here, tensor_rows, write_pairs
from tests.vaes import KL, small_vae

pytest.importorskip("transformers", reason="diffusers' pipelines need transformers")

SIDE = 64
STEPS = 3
SEED = 7
SIZE = {"height": SIDE, "width": SIDE}
UNET = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "sample_size": SIDE // 8,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
}
FLUX = {"patch_size": 1, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2}
FLUX |= {"joint_attention_dim": 32, "pooled_projection_dim": 32, "axes_dims_rope": (4, 4, 8), "out_channels": 64}
VAES = {
    "sd1": KL,
    "sdxl": KL | {"scaling_factor": 0.13025},
    "playground": KL
    | {"scaling_factor": 0.5, "latents_mean": [0.5, -1.0, 0.25, 2.0], "latents_std": [0.5, 2.0, 4.0, 8.0]},
    "flux1": KL
    | {"latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159}
    | {"use_quant_conv": False, "use_post_quant_conv": False},
}


def close(found, expected) -> bool:
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def seeded(seed=SEED):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=1):
    return torch.randn(shape, generator=seeded(seed))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(0)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[9:43, 22:51] = 255
    return rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8), mask


@pytest.fixture(scope="module")
def files(pair):
    """The same image and mask as Pillow images, for the pipelines."""
    return {"image": Image.fromarray(pair[0]), "mask_image": Image.fromarray(pair[1])}


@pytest.fixture(scope="module")
def vaes():
    from diffusers import AutoencoderKL

    found = {"flux2": small_vae("AutoencoderKLFlux2")}
    for name, config in VAES.items():
        torch.manual_seed(0)
        found[name] = AutoencoderKL(**config).eval().requires_grad_(False)
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory, make_job, pair, vaes):
    """Run a job on the pair with this VAE and these options, once; return the row and its metadata."""
    folder = tmp_path_factory.mktemp("into")
    write_pairs(folder / "in", {"a": pair})
    done = {}

    def make(name, **asked):
        asked = {"grow_mask_by": 0, "posterior": "moments", "also_original": True} | asked
        key = repr((name, sorted(asked.items())))
        if key not in done:
            vaes[name].save_pretrained(folder / name)
            output, asked = str(folder / str(len(done))), asked | {"vae": str(folder / name)}
            encode_here(make_job(folder / "in/images", folder / "in/masks", output, **asked))
            done[key] = tensor_rows(output)["a"], Output.open(output).metadata
        return done[key]

    return make


class Denoiser:
    """What a pipeline's denoiser was given, by a hook on its ``forward``."""

    def __init__(self, module, replaced=None):
        self.inputs, self._replaced = [], replaced
        self._hook = module.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, _module, args, kwargs):
        given = args[0] if args else kwargs["hidden_states"]
        if self._replaced is not None:
            given = self._replaced(given)
            args, kwargs = ((given, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": given})
        self.inputs.append(given)
        return args, kwargs

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._hook.remove()


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stable_diffusion(vae, channels):
    from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel

    torch.manual_seed(1)
    unet = UNet2DConditionModel(**UNET, in_channels=channels, cross_attention_dim=32, attention_head_dim=2).eval()
    parts = {"unet": unet, "vae": vae, "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False)}
    none = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    return quiet(StableDiffusionInpaintPipeline(**parts, **none, requires_safety_checker=False))


def stable_diffusion_xl(vae, channels):
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLInpaintPipeline, UNet2DConditionModel

    torch.manual_seed(1)
    text = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 80,
    }
    unet = UNet2DConditionModel(
        **UNET, **text, in_channels=channels, cross_attention_dim=32, attention_head_dim=2
    ).eval()
    parts = {"unet": unet, "vae": vae, "scheduler": EulerDiscreteScheduler()}
    none = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    return quiet(StableDiffusionXLInpaintPipeline(**parts, **none, add_watermarker=False))


def flux(kind, vae, channels):
    import diffusers

    torch.manual_seed(1)
    transformer = diffusers.FluxTransformer2DModel(**FLUX, in_channels=channels).eval()
    parts = {"vae": vae, "transformer": transformer, "scheduler": diffusers.FlowMatchEulerDiscreteScheduler()}
    none = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    return quiet(getattr(diffusers, kind)(**parts, **none))


TEXT = {"prompt_embeds": normal(1, 5, 32, seed=2)}
TEXTS = TEXT | {"pooled_prompt_embeds": normal(1, 32, seed=3)}
"""Embeddings in place of prompts, the same in every run."""


def image_of(pipeline, **given):
    """Run a pipeline once: ``[1, 3, H, W]`` in 0..1."""
    asked = {"num_inference_steps": STEPS, "strength": 1.0, "guidance_scale": 1.0, "output_type": "pt", **SIZE}
    with torch.no_grad():
        return pipeline(**asked, **given).images


def batch(row):
    return {name: value[None] for name, value in row.items()}


@pytest.mark.parametrize(
    ("family", "build", "texts"), [("sd1", stable_diffusion, TEXT), ("sdxl", stable_diffusion_xl, TEXTS)]
)
class TestStableDiffusion:
    def test_nine_channels(self, family, build, texts, made, vaes, files):
        """`inpaint_input` equals the denoiser's input in each step, and the image is the same."""
        row, metadata = made(family)
        pipeline, noise = build(vaes[family], 9), normal(1, 4, SIDE // 8, SIDE // 8)
        with Denoiser(pipeline.unet) as own:
            expected = image_of(pipeline, **files, **texts, latents=noise, generator=seeded())
        ours = batch(for_diffusers(row, metadata, with_latents=False, generator=seeded()))
        for given in own.inputs:
            assert torch.equal(given[:, 4:5], ours["mask"])
            assert close(given, inpaint_input(given[:, :4], ours))
        assert len(own.inputs) == STEPS
        given = {"image": noise, "mask_image": row["noise_mask"][None].float(), "latents": noise}
        found = image_of(pipeline, **given, **texts, masked_image_latents=ours["masked_image_latents"])
        assert close(found, expected)
        others = image_of(pipeline, **given, **texts, masked_image_latents=ours["masked_image_latents"] * 1.1)
        assert not close(others, expected)

    def test_four_channels(self, family, build, texts, made, vaes, files):
        """A denoiser without mask input: the pipeline restores the image's latent around the mask after every step."""
        row, metadata = made(family)
        pipeline, noise = build(vaes[family], 4), normal(1, 4, SIDE // 8, SIDE // 8)
        expected = image_of(pipeline, **files, **texts, latents=noise, generator=seeded())
        ours = batch(for_diffusers(row, metadata, generator=seeded()))
        given = {"mask_image": row["noise_mask"][None].float(), "latents": noise, **texts}
        given["masked_image_latents"] = ours["masked_image_latents"]  # without it, the pipeline would mask the latent
        assert close(image_of(pipeline, **given, image=ours["latents"]), expected)
        assert not close(image_of(pipeline, **given, image=ours["masked_image_latents"]), expected)

    def test_a_mean_is_the_center_of_the_draws(self, family, build, texts, made, vaes, files):
        """The pipeline draws a sample; a row with means has the mean of its draws."""
        row, metadata = made(family, posterior="mean")
        pipeline = build(vaes[family], 9)
        found = for_diffusers(row, metadata, with_latents=False)["masked_image_latents"][None]
        distribution, draws = drawn(pipeline, files, 24)
        deviation = distribution.std * pipeline.vae.config.scaling_factor
        assert close(found, distribution.mode() * pipeline.vae.config.scaling_factor)
        assert ((draws - found).abs() > deviation / 100).float().mean() > 0.9
        assert ((draws.mean(dim=0) - found).abs() < 6 * deviation / 24**0.5).all()


def prepared(pipeline, files):
    """Mask and masked image, ``[1, 1 or 3, H, W]``, as the pipelines pass them to the VAE."""
    image = pipeline.image_processor.preprocess(files["image"], **SIZE)
    mask = pipeline.mask_processor.preprocess(files["mask_image"], **SIZE)
    return mask, image * (mask < 0.5)


def mask_latents(pipeline, mask, image, seed=SEED, *others):
    """Return mask and masked_image_latents of `prepare_mask_latents`, for the pipelines with a UNet."""
    with torch.no_grad():
        return pipeline.prepare_mask_latents(
            mask, image, 1, *others, SIDE, SIDE, torch.float32, "cpu", seeded(seed), False
        )


def drawn(pipeline, files, count):
    """Return the posterior of the masked image, and the masked_image_latents of ``count`` runs."""
    mask, masked = prepared(pipeline, files)
    with torch.no_grad():
        distribution = pipeline.vae.encode(masked).latent_dist
    return distribution, torch.cat([mask_latents(pipeline, mask, masked, seed)[1] for seed in range(count)])


class TestDifferences:
    """Differences that the README lists. Without them, the rows have the pipelines' values."""

    def test_growth(self, made, vaes, files):
        """The denoiser's mask grows, the masked area does not. `--latent-mask diffusers` stores the ungrown mask."""
        pipeline = stable_diffusion(vaes["sd1"], 9)
        mask, latents = mask_latents(pipeline, *prepared(pipeline, files))
        found = {}
        for rule in ("none", "diffusers"):
            row, metadata = made("sd1", grow_mask_by=12, latent_mask=rule)
            found[rule] = batch(for_diffusers(row, metadata, with_latents=False, generator=seeded()))
            assert close(found[rule]["masked_image_latents"], latents)
        assert torch.equal(found["diffusers"]["mask"], mask)
        assert (found["none"]["mask"] - mask).unique().tolist() == [0, 1]

    def test_sdxl_with_statistics_is_encoded_without_them_there(self, made, vaes, files):
        """diffusers 0.42.1 decodes with them, but encodes with them only in its image-to-image pipeline."""
        row, metadata = made("playground")
        pipeline = stable_diffusion_xl(vaes["playground"], 9)
        _, there = mask_latents(pipeline, *prepared(pipeline, files))
        here = for_diffusers(row, metadata, with_latents=False, generator=seeded())["masked_image_latents"][None]
        mean, std = (torch.tensor(VAES["playground"][name]).view(4, 1, 1) for name in ("latents_mean", "latents_std"))
        assert not close(here, there)
        assert close(here, (there - 0.5 * mean) / std)

    def test_sd3_scales_its_masked_image_latents(self, made, vaes, files):
        """Its ``masked_image_latents=`` are ComfyUI's, not scaled; its denoiser gets ours, scaled."""
        from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3InpaintPipeline

        row, metadata = made("flux1", posterior="mean")
        names = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
        parts = {"vae": vaes["flux1"], "scheduler": FlowMatchEulerDiscreteScheduler(), "transformer": None}
        pipeline = StableDiffusion3InpaintPipeline(**parts, **dict.fromkeys(names))
        mask, masked = prepared(pipeline, files)
        ours = batch(for_diffusers(row, metadata, with_latents=False))
        there, latents = mask_latents(pipeline, mask, for_comfyui(row, metadata)["samples"], SEED, 1)
        assert torch.equal(there, ours["mask"])
        assert torch.equal(latents, ours["masked_image_latents"])
        _, twice = mask_latents(pipeline, mask, ours["masked_image_latents"], SEED, 1)
        assert not close(twice, ours["masked_image_latents"])
        row, metadata = made("flux1")
        _, own = mask_latents(pipeline, mask, masked, SEED, 1)
        drawn_here = for_diffusers(row, metadata, with_latents=False, generator=seeded())["masked_image_latents"]
        assert close(drawn_here[None], own)

    def test_flux2_resizes_the_mask_by_bilinear(self, made, vaes, files):
        """Its pipeline uses the mean, so packed latents are equal; its mask follows ComfyUI's convention."""
        from diffusers import Flux2KleinInpaintPipeline

        names = ("scheduler", "text_encoder", "tokenizer", "transformer")
        pipeline = Flux2KleinInpaintPipeline(vae=vaes["flux2"], **dict.fromkeys(names))
        row, metadata = made("flux2", posterior="mean")
        with torch.no_grad():
            image = pipeline.image_processor.preprocess(files["image"], **SIZE)
            expected = pipeline._encode_vae_image(image, None)
        mask = pipeline.mask_processor.preprocess(files["mask_image"], **SIZE)
        there = pipeline.prepare_mask_latents(mask, 1, 1, SIDE, SIDE, torch.float32, "cpu")
        found = for_diffusers(row, metadata)
        assert close(found["latents"][None], expected)
        assert torch.equal(latent_mask(row, metadata, "comfyui").view(1, -1, 1), there)
        assert not torch.equal(found["mask"].view(1, -1, 1), there)


class TestFlux:
    def test_inpaint(self, made, vaes, files):
        row, metadata = made("flux1")
        pipeline, noise = flux("FluxInpaintPipeline", vaes["flux1"], 64), normal(1, 16, SIDE // 8, SIDE // 8)
        expected = image_of(pipeline, **files, **TEXTS, latents=noise, generator=seeded())
        ours = batch(for_diffusers(row, metadata, generator=seeded()))
        given = {"mask_image": row["noise_mask"][None].float(), "latents": noise, **TEXTS}
        given["masked_image_latents"] = ours["masked_image_latents"]
        assert close(image_of(pipeline, **given, image=ours["latents"]), expected)
        assert not close(image_of(pipeline, **given, image=ours["masked_image_latents"]), expected)

    def test_fill(self, made, vaes, files):
        """In 0.42.1, ``masked_image_latents=`` cannot be used: an image is required and forbidden.

        Instead, our latents replace the denoiser's input in a run on another image. The result is that of our image.
        """
        row, metadata = made("flux1")
        pipeline = flux("FluxFillPipeline", vaes["flux1"], 384)
        noise = pack_latent(normal(1, 16, SIDE // 8, SIDE // 8))
        with Denoiser(pipeline.transformer) as own:
            expected = image_of(pipeline, **files, **TEXTS, latents=noise, generator=seeded())
        asked = {"layout": "flux_fill", "with_latents": False, "generator": seeded()}
        ours = batch(for_diffusers(row, metadata, **asked))
        for given in own.inputs:
            assert torch.equal(given[..., 128:], ours["mask"])
            assert close(given, inpaint_input(given[..., :64], ours, layout="flux_fill"))
        assert len(own.inputs) == STEPS
        grey = {"image": Image.new("RGB", (SIDE, SIDE), (128,) * 3), "mask_image": Image.new("L", (SIDE, SIDE), 0)}
        assert not close(image_of(pipeline, **grey, **TEXTS, latents=noise, generator=seeded()), expected)

        def replaced(given):
            return inpaint_input(given[..., :64], ours, layout="flux_fill")

        with Denoiser(pipeline.transformer, replaced):
            found = image_of(pipeline, **grey, **TEXTS, latents=noise, generator=seeded())
        assert close(found, expected)
        texts = {**TEXTS, "latents": noise, "masked_image_latents": replaced(noise)[..., 64:]}
        with pytest.raises(ValueError, match="Input is in incorrect format"):
            image_of(pipeline, **texts, mask_image=files["mask_image"])
        with pytest.raises(ValueError, match="either  `image` or `masked_image_latents`"):
            image_of(pipeline, **texts, **files)

    def test_fill_needs_multiples_of_16(self, vaes):
        """The job crops to multiples of 8. The pipeline resizes to 16; here, an odd latent cannot be packed."""
        pipeline = flux("FluxFillPipeline", vaes["flux1"], 384)
        image = Image.new("RGB", (72, 88))
        assert pipeline.image_processor.preprocess(image).shape[2:] == (80, 64)
        with pytest.raises(UsageError, match="9 x 11"):
            pack_latent(torch.zeros(16, 88 // 8, 72 // 8))


def test_a_training_step_has_the_same_input(made, vaes, files):
    """The usual training step: noise on the image's latent, combined by `inpaint_input`."""
    row, metadata = made("sd1")
    pipeline = stable_diffusion(vaes["sd1"], 9)
    noise, step = normal(1, 4, SIDE // 8, SIDE // 8), torch.tensor([400])
    ours = batch(for_diffusers(row, metadata, generator=seeded()))
    noisy = pipeline.scheduler.add_noise(ours["latents"], noise, step)
    mask, masked = prepared(pipeline, files)
    with torch.no_grad():
        generator, image = seeded(), pipeline.image_processor.preprocess(files["image"], **SIZE)
        latents = pipeline._encode_vae_image(image, generator)
        masked = pipeline._encode_vae_image(masked, generator)
        expected = torch.cat([pipeline.scheduler.add_noise(latents, noise, step), mask[..., ::8, ::8], masked], dim=1)
        found = inpaint_input(noisy, ours)
        assert close(found, expected)
        out = pipeline.unet(found, step, TEXT["prompt_embeds"]).sample
    assert out.shape == noise.shape
