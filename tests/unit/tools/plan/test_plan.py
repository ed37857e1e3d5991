"""A plan's figures, each against a count of the test's own; errors against many samples of known populations."""

import io
import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from inpaint_encode.core.batch import CPU_PIXELS, images_at_once
from inpaint_encode.core.decode import PairDecoder, decode_image, upright_size
from inpaint_encode.core.geometry import Sizing
from inpaint_encode.demo.pairs import upload, write_random_pairs
from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.settings import Batches, Chunks, PlanOptions, RowSettings, Source, VaeSource
from inpaint_encode.settings.commands import Estimation, PlannedVae
from inpaint_encode.sources import PairReader
from inpaint_encode.tools.plan import numbers
from inpaint_encode.tools.plan.calibrate import Pair, calibrate
from inpaint_encode.tools.plan.headers import START, draw, read_header
from inpaint_encode.tools.plan.run import estimate
from inpaint_encode.vae.load import load_vae
from tests.conftest import command
from tests.proxy import FaultyProxy

PAIRS, CHUNK_ROWS, BATCH_SIZE = 120, 16, 4
RATIO, CHANNELS = 8, 4
DECODER = PairDecoder(sizing=Sizing(multiple=RATIO))
BAD = {"decode.not_an_image": 2, "decode.corrupt": 1, "decode.unsupported": 1, "size.too_small": 1}


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Good pairs of few sizes, a rotated one, images that cannot be rows, and files that are no pairs."""
    folder = tmp_path_factory.mktemp("plan")
    write_random_pairs(folder, PAIRS, seed=3, smallest=16, largest=40)
    special = {
        "a/rotated.jpg": encoded(Image.new("RGB", (80, 48)), "JPEG", exif=oriented(6)),
        "m/empty.png": b"",
        "m/text.jpg": b"not an image at all",
        "m/cut.png": encoded(Image.new("RGB", (64, 64)))[:20],
        "m/float.tif": encoded(Image.fromarray(np.zeros((64, 64), np.float32)), "TIFF"),
        "z/narrow.png": encoded(Image.new("RGB", (90, 7))),
    }
    for name, data in special.items():
        for side, content in (("images", data), ("masks", encoded(Image.new("L", (16, 16))))):
            path = folder / side / (name if side == "images" else Path(name).with_suffix(".png"))
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
    (folder / "images/alone.png").write_bytes(b"")
    (folder / "images/caption.txt").write_bytes(b"")
    for name in ("lone-1.png", "lone-2.png"):
        (folder / "masks" / name).write_bytes(b"")
    return folder


def options_for(folder, *, vae="", rows=None, decoding=None, limits=None, **estimation) -> PlanOptions:
    return PlanOptions(
        source=Source(images=str(folder / "images"), masks=str(folder / "masks")),
        vae=PlannedVae(vae=vae),
        rows=RowSettings(**rows or {}),
        decoding=decoding or {},
        limits=limits or {},
        chunks=Chunks(chunk_rows=CHUNK_ROWS),
        batches=Batches(batch_size=BATCH_SIZE),
        estimation=Estimation(**estimation),
    )


def forecast_of(folder, **options):
    return estimate(options_for(folder, **options), lambda line: None)


def true_sizes(folder: Path) -> list[tuple[int, int] | None]:
    """Every pair's size after the crop, by decoding the image whole, in the order of the keys; None if it has none."""
    images = {str(path.relative_to(folder / "images").with_suffix("")): path for path in images_of(folder)}
    return [true_size(images[key]) for key in sorted(images)]


def images_of(folder: Path) -> list[Path]:
    paths = (folder / "images").rglob("*.*")
    return [path for path in paths if path.suffix != ".txt" and path.stem != "alone"]


def true_size(path: Path) -> tuple[int, int] | None:
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            size = upright.height // RATIO * RATIO, upright.width // RATIO * RATIO
            return size if min(size) and upright.mode != "F" else None
    except (OSError, ValueError):
        return None


class TestWhole:
    """With a sample as large as the source nothing is estimated."""

    @pytest.fixture(scope="class")
    def forecast(self, folder):
        return forecast_of(folder, sample=10_000)

    def test_counts(self, forecast, folder):
        count = PAIRS + 6
        assert forecast.is_whole
        assert (forecast.pairs, forecast.sampled, forecast.chunks) == (count, count, math.ceil(count / CHUNK_ROWS))
        assert (forecast.unpaired_images, forecast.unpaired_masks, forecast.ignored_files) == (1, 2, 1)
        assert forecast.source_image_bytes == sum(path.stat().st_size for path in images_of(folder))
        masks = [path for path in (folder / "masks").rglob("*.png") if "lone" not in path.stem]
        assert forecast.source_mask_bytes == sum(path.stat().st_size for path in masks)

    def test_the_histogram_is_the_source_s(self, forecast, folder):
        expected = Counter(size for size in true_sizes(folder) if size)
        assert {(size.height, size.width): size.images for size in forecast.sizes} == expected
        assert expected[80, 48] >= 1  # the rotated one, which lies as 48 x 80 in its file
        assert [size.images for size in forecast.sizes] == sorted(expected.values(), reverse=True)
        for size in forecast.sizes:
            assert size.share == numbers.Figure(size.images / forecast.pairs, 0.0)

    def test_rejects_are_named(self, forecast):
        assert {one.error: one.images for one in forecast.rejects} == BAD
        assert forecast.rejected == numbers.Figure(sum(BAD.values()) / forecast.pairs, 0.0)

    def test_means_and_bytes(self, forecast, folder):
        pixels = [height * width for height, width in filter(None, true_sizes(folder))]
        assert forecast.megapixels.value == pytest.approx(np.mean(pixels) / 1e6)
        assert forecast.latent_bytes.value == pytest.approx(sum(pixels) / RATIO**2 * CHANNELS * 2)
        assert forecast.mask_bytes.value == pytest.approx(sum(pixels) / 8)
        figures = (forecast.megapixels, forecast.latent_bytes, forecast.mask_bytes)
        assert [figure.half_width for figure in figures] == [0.0] * 3

    def test_passes_are_counted(self, forecast, folder):
        sizes = true_sizes(folder)
        chunks = [sizes[start : start + CHUNK_ROWS] for start in range(0, len(sizes), CHUNK_ROWS)]
        groups = [count for chunk in chunks for count in Counter(filter(None, chunk)).values()]
        assert forecast.passes.exact
        assert forecast.passes.estimate == sum(math.ceil(count / BATCH_SIZE) for count in groups)

    def test_deterministic_rows_are_batches_of_one(self, folder, forecast):
        alone = forecast_of(folder, sample=10_000, rows={"deterministic": True})
        assert (alone.batch_size, alone.passes.estimate) == (1, forecast.pairs - sum(BAD.values()))

    def test_what_is_added_to_rows_is_added_to_their_bytes(self, folder, forecast):
        asked = {"posterior": "moments", "also_original": True, "latent_mask": "comfyui"}
        more = forecast_of(folder, sample=10_000, rows=asked)
        assert more.latent_bytes.value == pytest.approx((2 * 2 * 4 + 1) / 4 * forecast.latent_bytes.value)

    def test_a_vae_that_no_job_would_take_is_refused(self, folder, vae_folder, tmp_path):
        vae = load_vae(VaeSource(vae=vae_folder))
        vae.quant_conv.bias.fill_(float("nan"))
        vae.save_pretrained(tmp_path)
        with pytest.raises(UsageError, match="values that are not finite"):
            forecast_of(folder, sample=10, vae=str(tmp_path))

    def test_stored_type_and_the_vae_s_channels_make_the_latents(self, folder, forecast, vae_folder):
        wide = forecast_of(folder, sample=10_000, vae=vae_folder, rows={"samples_dtype": "float32"})
        assert wide.latent_bytes.value == pytest.approx(2 * forecast.latent_bytes.value)
        assert (forecast.latents.assumed, wide.latents.assumed) == (True, False)

    def test_sizes_and_limits_are_the_job_s(self, folder):
        given = {"decoding": {"resolution": "48x32", "upscale": True}, "limits": {"max_bytes": 600}}
        forecast = forecast_of(folder, sample=10_000, **given)
        assert {(size.height, size.width) for size in forecast.sizes} == {(32, 48)}
        over = sum(path.stat().st_size > 600 for path in images_of(folder))
        assert {one.error: one.images for one in forecast.rejects}["fetch.too_large"] == over > 0
        large = forecast_of(folder, sample=10_000, decoding={"resize": 20_000, "upscale": True})
        assert large.sizes == [] and {one.error for one in large.rejects} >= {"size.too_large"}
        with pytest.raises(UsageError, match="--resolution 50x30 is no multiple of the VAE's 8; the nearest is 48x32"):
            forecast_of(folder, decoding={"resolution": "50x30"})


class TestSample:
    def test_errors_shrink_with_the_sample(self, folder):
        forecasts = [forecast_of(folder, sample=count) for count in (15, 60, 110, 1_000)]
        for figure in ("rejected", "megapixels", "latent_bytes", "mask_bytes"):
            errors = [getattr(forecast, figure).half_width for forecast in forecasts]
            assert errors == sorted(errors, reverse=True), figure
            assert errors[0] > 2 * errors[1] > errors[-1] == 0, figure

    def test_a_seed_draws_the_same_and_another_seed_others(self, folder):
        one, same, other = (forecast_of(folder, sample=30, seed=seed).as_dict() for seed in (1, 1, 2))
        assert one == same != other

    def test_every_position_is_drawn_as_often(self):
        counts = np.bincount([position for seed in range(3_000) for position in draw(10, 3, seed)])
        assert np.abs(counts - 900).max() < 5 * math.sqrt(3_000 * 0.3 * 0.7)

    def test_nothing_of_a_table_is_missing_for_a_sample_of_one(self, folder):
        lone = forecast_of(folder, sample=1).as_dict()
        assert lone["megapixels"]["half_width"] is None
        json.dumps(lone, allow_nan=False)


class TestErrors:
    """95% intervals hold the truth in about 95% of many samples."""

    POPULATION, SAMPLED, TIMES = 1_000, 120, 500

    def coverage(self, population, figure_of) -> float:
        rng = np.random.default_rng(0)
        figures = [figure_of(rng.choice(population, self.SAMPLED, replace=False)) for _ in range(self.TIMES)]
        truth = figure_of(population).value
        return float(np.mean([abs(figure.value - truth) <= figure.half_width for figure in figures]))

    @pytest.mark.parametrize("true_share", [0.02, 0.3, 0.95])
    def test_shares(self, true_share):
        population = np.arange(self.POPULATION) < true_share * self.POPULATION
        covered = self.coverage(population, lambda of: numbers.share(int(of.sum()), len(of), self.POPULATION))
        assert covered >= 0.92
        unseen = 1 - self.SAMPLED / self.POPULATION
        known = numbers.Z * math.sqrt(true_share * (1 - true_share) / self.SAMPLED * unseen)
        width = numbers.share(round(true_share * self.SAMPLED), self.SAMPLED, self.POPULATION).half_width
        assert width == pytest.approx(known, rel=0.1 if true_share == 0.3 else 0.8)

    def test_means(self):
        population = np.random.default_rng(1).lognormal(size=self.POPULATION)
        assert 0.9 <= self.coverage(population, lambda of: numbers.mean(list(of), len(of), self.POPULATION)) <= 0.99

    def test_totals(self):
        population = np.random.default_rng(2).uniform(size=self.POPULATION) * (np.arange(self.POPULATION) % 10 > 0)
        assert 0.92 <= self.coverage(population, lambda of: numbers.total(list(of), self.POPULATION)) <= 0.98

    def test_ratios(self):
        rng = np.random.default_rng(3)
        held = 0
        for _ in range(self.TIMES):
            megapixels = rng.uniform(1, 9, 40)
            seconds = 0.25 * megapixels * rng.normal(1, 0.2, 40)
            figure = numbers.ratio(list(seconds), list(megapixels))
            held += abs(figure.value - 0.25) <= figure.half_width
        assert 0.91 <= held / self.TIMES <= 0.98

    def test_products(self):
        one, other = numbers.Figure(10, 0.5), numbers.Figure(4, 0.1)
        rng = np.random.default_rng(4)
        spread = (rng.normal(10, 0.5 / numbers.Z, 10**5) * rng.normal(4, 0.1 / numbers.Z, 10**5)).std()
        assert numbers.product(one, other).half_width == pytest.approx(spread * numbers.Z, rel=0.02)

    def test_none_of_many_is_not_certainly_none(self):
        assert numbers.share(0, 256, 10**9).half_width == pytest.approx(0.0148, abs=1e-4)
        assert numbers.share(0, 256, 256).half_width == 0

    def test_one_batch_says_nothing_of_the_spread(self):
        assert numbers.ratio([3.0], [2.0]).value == 1.5
        assert math.isnan(numbers.ratio([3.0], [2.0]).half_width)


class TestPasses:
    LENGTHS = np.full(2_000, 64)

    @pytest.mark.parametrize("kinds", [3, 40, 100_000])
    def test_an_estimate_is_near_the_count_for_sizes_in_no_order(self, kinds):
        rng = np.random.default_rng(kinds)
        sizes = rng.integers(0, kinds, self.LENGTHS.sum())
        truth = sum(int(np.ceil(np.bincount(chunk) / 8).sum()) for chunk in sizes.reshape(-1, 64))
        positions = np.array(draw(len(sizes), 256, 0))
        estimated = numbers.passes(self.LENGTHS, positions, sizes[positions], 8, 0)
        assert estimated.estimate == pytest.approx(truth, rel=0.03)
        assert (estimated.exact, estimated.sparse) == (False, False)

    def test_the_least_is_the_count_for_sorted_sizes(self):
        sizes = np.repeat(np.arange(2_000), 64)
        positions = np.array(draw(len(sizes), 256, 0))
        assert numbers.passes(self.LENGTHS, positions, sizes[positions], 8, 0).least == 2_000 * 8

    def test_each_size_has_its_own_batches(self):
        kinds = np.array([0, 0, 0, 0, 1, 1, 1, -1])
        counted = numbers.passes(np.array([8]), np.arange(8), kinds, [3, 1], 0)
        assert (counted.estimate, counted.exact) == (2 + 3, True)
        sizes = [(64, 64), (512, 512), (4096, 4096)]
        assert [images_at_once(*size, CPU_PIXELS) for size in sizes] == [8, 2, 1]
        assert images_at_once(512, 512, math.inf) == 8

    def test_rejects_take_no_pass(self):
        positions = np.arange(self.LENGTHS.sum())
        kinds = np.where(positions % 2, -1, 0)
        counted = numbers.passes(self.LENGTHS, positions, kinds, 8, 0)
        assert counted == numbers.Passes(estimate=2_000 * 4, least=2_000 * 4, exact=True, sparse=False)

    def test_a_chunk_longer_than_the_sample_is_told(self):
        assert numbers.passes(self.LENGTHS, np.arange(10), np.arange(10), 8, 0).sparse


def header_of(path):
    return read_header({"image_uri": str(path)}, PairReader(), DECODER)


class TestHeaders:
    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
    def test_the_size_is_the_decoded_one(self, kind, orientation):
        data = encoded(Image.new("RGB", (60, 20)), kind, exif=oriented(orientation))
        assert upright_size(data) == decode_image(data).levels.shape[:2]
        assert upright_size(data) == ((60, 20) if orientation > 4 else (20, 60))

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
    def test_of_a_large_file_the_start_is_enough_or_all_is_read(self, tmp_path, kind):
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (304, 500, 3), np.uint8))
        exif = {} if kind in {"BMP", "GIF"} else {"exif": oriented(8)}
        lossless = {"lossless": True} if kind == "WEBP" else {}
        path = tmp_path / "x"
        path.write_bytes(encoded(picture, kind, **exif, **lossless))
        size = path.stat().st_size
        assert size > START
        header = header_of(path)
        assert header.size == ((496, 304) if exif else (304, 496))
        assert header.bytes_read == START + (size if kind == "WEBP" else 0)

    def test_a_header_that_is_longer_than_the_start(self, tmp_path):
        path = tmp_path / "x.jpg"
        path.write_bytes(encoded(Image.new("RGB", (64, 32)), "JPEG", icc_profile=bytes(3 * START)))
        assert header_of(path).size == (32, 64)

    def test_a_file_that_has_gone_is_a_reject(self, tmp_path):
        assert header_of(tmp_path / "none.png") == (None, "fetch.not_found", 0)

    def test_a_file_that_may_not_be_read_ends_the_plan(self, tmp_path):
        (tmp_path / "folder.png").mkdir()
        with pytest.raises(JobFailed, match=r"folder\.png cannot be read"):
            header_of(tmp_path / "folder.png")


class CountingProxy(FaultyProxy):
    """Counts the bytes of answers to GETs."""

    async def _forward(self, request, *, cut):
        answer = await super()._forward(request, cut=cut)
        self.counts["bytes"] += len(answer.body) if request.start[0] == "GET" else 0
        return answer


def test_from_s3_no_more_is_fetched_than_the_starts(s3, tmp_path):
    count, sampled = 12, 8
    for number in range(count):
        picture = np.random.default_rng(number).integers(0, 256, (400, 600 + 8 * number, 3), np.uint8)
        for side, image in (("images", Image.fromarray(picture)), ("masks", Image.new("L", (600, 400)))):
            path = tmp_path / side / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(encoded(image))
    upload(tmp_path, s3.uri("plan"))
    sources = ("--images", s3.uri("plan/images"), "--masks", s3.uri("plan/masks"))
    with CountingProxy(s3) as proxy:
        done = command("plan", *sources, "--sample", sampled, "--as-json", **proxy.environment)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["source_image_bytes"] > 8e6
    assert told["header_bytes"] == sampled * START
    assert sampled * START <= proxy.counts["bytes"] < sampled * START + 20_000  # two listings besides
    assert proxy.counts["requests"] == sampled + 2
    assert {size["height"] for size in told["sizes"]} == {400}


class TestCalibration:
    @pytest.fixture(scope="class")
    def vae(self, vae_folder):
        return load_vae(VaeSource(vae=vae_folder))

    def sizes_of(self, folder, count=10):
        paths = sorted((folder / "images/000").iterdir())[:count]
        masks = [folder / "masks/000" / f"{path.stem}.png" for path in paths]
        return {Pair(path.stem, str(path), str(mask)): true_size(path) for path, mask in zip(paths, masks, strict=True)}

    def test_what_is_timed_is_what_was_encoded(self, folder, vae, vae_folder):
        sizes = self.sizes_of(folder)
        options = options_for(folder, vae=vae_folder, calibrate=0.5)
        trial = calibrate(vae, sizes, options, DECODER)
        counts = {len(getattr(trial, name)) for name in ("images", "megapixels", "fetch_s", "decode_s", "encode_s")}
        assert len(counts) == 1
        assert sum(trial.encode_s) > 0
        megapixels = {round(height * width / 1e6, 9) for height, width in sizes.values()}
        alone = [round(area / count, 9) for area, count in zip(trial.megapixels, trial.images, strict=True)]
        assert set(alone) <= megapixels
        assert max(trial.images) <= BATCH_SIZE
        assert not trial.rejected

    def test_written_bytes_are_of_each_pair_once(self, folder, vae, vae_folder):
        sizes = self.sizes_of(folder, 3)
        trial = calibrate(vae, sizes, options_for(folder, vae=vae_folder, calibrate=2), DECODER)
        assert sum(trial.images[index] for index in trial.mask_bytes) <= len(sizes)
        assert [*trial.mask_bytes] == [*trial.latent_bytes] == list(range(len(trial.mask_bytes)))
        pixels = 1e6 * sum(trial.megapixels[index] for index in trial.mask_bytes)
        overhead = 300 * len(trial.mask_bytes)  # pages' and dictionaries' heads
        assert 0 < sum(trial.mask_bytes.values()) <= pixels / 8 + overhead
        latent_bytes = pixels / RATIO**2 * CHANNELS * 2
        assert 0.5 * latent_bytes < sum(trial.latent_bytes.values()) < latent_bytes + 2 * overhead

    def test_damage_behind_a_header_is_counted(self, folder, vae, vae_folder, tmp_path):
        path, mask = tmp_path / "x.png", tmp_path / "mask.png"
        path.write_bytes(encoded(Image.effect_noise((64, 64), 50).convert("RGB"))[:2_000])
        mask.write_bytes(encoded(Image.new("L", (64, 64))))
        options = options_for(folder, vae=vae_folder, calibrate=0.1)
        sizes = {Pair(path.stem, str(path), str(mask)): header_of(path).size}
        trial = calibrate(vae, {**sizes, **self.sizes_of(folder, 2)}, options, DECODER)
        assert trial.rejected.keys() <= {"decode.truncated"}
        with pytest.raises(JobFailed, match=r"none of the sampled pairs can be encoded: [\d,]+ decode\.truncated"):
            calibrate(vae, sizes, options, DECODER)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU that is asked for is there")
    def test_a_gpu_that_is_asked_for_and_not_there(self, folder, vae, vae_folder):
        options = options_for(folder, vae=vae_folder, calibrate=0.1)
        asked = options.model_copy(update={"batches": Batches(gpus_per_worker="1")})
        with pytest.raises(UsageError, match="--gpus-per-worker 1 needs a GPU"):
            calibrate(vae, self.sizes_of(folder), asked, DECODER)


class TestCommand:
    """As a user runs it."""

    @pytest.fixture(scope="class")
    def sources(self, folder):
        return ("--images", folder / "images", "--masks", folder / "masks")

    def test_a_calibrated_plan_adds_up(self, folder, sources, vae_folder, shell):
        before = sorted(folder.rglob("*"))
        extra = ("--vae", vae_folder, "--calibrate", 1, "--price", 2.5, "--as-json", "--sample", 1_000)
        done = shell("plan", *sources, *extra)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        trial = told["calibration"]
        megapixels = sum(height * width for height, width in filter(None, true_sizes(folder))) / 1e6
        hours = megapixels / trial["megapixels_per_second"]["value"] / 3600
        assert trial["hours"]["value"] == pytest.approx(hours)
        assert trial["price"]["value"] == pytest.approx(2.5 * hours)
        assert trial["images"] >= trial["batches"] > 0
        assert told["passes"]["exact"]
        assert sorted(folder.rglob("*")) == before

    def test_a_table_is_printed_and_no_ray_is_loaded(self, sources):
        code = "import sys; from inpaint_encode.cli import main; main(sys.argv[1:]); assert 'ray' not in sys.modules"
        arguments = [*map(str, sources), "--sample", "20", "--chunk-rows", "50"]
        done = subprocess.run([sys.executable, "-c", code, "plan", *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        lines = {line.split("  ")[0].strip(): line for line in done.stdout.splitlines()}
        assert "126" in lines["pairs"]
        assert "3" in lines["output files"]
        assert "20" in lines["headers read"]
        assert "±" in lines["mean size"]
        assert "assumed for want of --vae" in lines["latents"]

    def test_a_job_s_file_serves(self, folder, tmp_path, shell):
        about = {"images": f"{folder}/images", "masks": f"{folder}/masks", "output": "s3://out", "max_rejected": "5%"}
        lines = [f'{name} = "{value}"' for name, value in about.items()]
        (tmp_path / "job.toml").write_text("\n".join([*lines, "chunk_rows = 50"]))
        done = shell("plan", "--config", tmp_path / "job.toml", "--as-json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["chunks"] == 3
        (tmp_path / "job.toml").write_text("chunk_row = 50")
        done = shell("plan", "--config", tmp_path / "job.toml")
        assert (done.returncode, "did you mean 'chunk_rows'?" in done.stderr) == (2, True)

    @pytest.mark.parametrize(
        ("extra", "sentence"),
        [
            (["--price", 3], "--price is of hours"),
            (["--calibrate", 3], "--calibrate encodes, so it needs --vae"),
            (["--revision", "main"], "say more of --vae"),
            (["--sample", 0], "--sample 0"),
            (["--vae", "/no/such/vae"], "--vae /no/such/vae cannot be loaded"),
            (["--output", "x"], "--output"),
        ],
    )
    def test_wrong_use_is_one_sentence(self, sources, extra, sentence, shell):
        done = shell("plan", *sources, *extra)
        assert done.returncode == 2
        (error,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert sentence in error
