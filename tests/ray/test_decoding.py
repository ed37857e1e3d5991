"""Rules of decoding through the whole job: sizes, conventions, limits and profiles, in the rows and in the report."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from skimage import data as photographs

from inpaint_encode import iter_rows
from inpaint_encode.core.decode import PairDecoder
from inpaint_encode.core.geometry import Sizing
from inpaint_encode.errors import UsageError
from inpaint_encode.job.pipeline import run_job
from inpaint_encode.job.progress import Display
from inpaint_encode.settings import VerifyOptions
from inpaint_encode.stores import storage
from inpaint_encode.tools.verify.pipeline import verify_output
from tests import mutations
from tests.files import COLOUR, COLOUR_ALPHA, GREY, matrix_profile, png, saved, tiff
from tests.outputs import rejects_of, whole_report
from tests.unit.core.decode.samples import ADOBE_RGB, turned_by

PHOTO = photographs.astronaut()[:200, :300]
RULES = {"mask_preset": "mat", "buckets": 96 * 96, "bucket_step": 32}
LIMITS = {"max_pixels": 100_000, "max_bytes": 100_000}
REJECTED = {
    "bomb": "image.too_large",
    "bytes": "fetch.too_large",
    "cut": "image.truncated",
    "html": "image.not_an_image",
    "across": "orientation.mismatch",
    "small": "size.too_small",
}


def images() -> dict[str, bytes]:
    small = PHOTO[:60, :60]
    return {
        "jpeg.jpg": saved(PHOTO, "JPEG"),
        "turned.jpg": saved(PHOTO, "JPEG", exif=turned_by(6)),
        "cmyk.jpg": saved(PHOTO, "JPEG", "CMYK"),
        "profile.png": saved(PHOTO[:150, :150], "PNG", icc_profile=matrix_profile(ADOBE_RGB, 2.2)),
        "alpha.png": png(np.dstack([PHOTO, PHOTO[..., 0]])[:100, :150], COLOUR_ALPHA),
        "wide.png": png(PHOTO[..., 0].astype(np.uint16) * 257, GREY, 16),
        "webp.webp": saved(PHOTO[:, :100], "WEBP"),
        "avif.AVIF": saved(PHOTO, "AVIF"),
        "tiff.tif": tiff(PHOTO[:130, :120]),
        "wrong-suffix.gif": saved(PHOTO[:130, :120], "BMP"),
        "bomb.png": png(np.zeros((400, 400, 3), np.uint8), COLOUR),
        "bytes.png": png(np.random.default_rng(0).integers(0, 256, (190, 190, 3)), COLOUR),
        "cut.jpg": saved(PHOTO, "JPEG")[:-2_000],
        "html.jpg": b"<!DOCTYPE html><title>404</title>",
        "across.jpg": saved(PHOTO, "JPEG", exif=turned_by(8)),
        "small.png": png(small, COLOUR),
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Pairs with PNG masks of half the size, black except for one white corner."""
    folder = tmp_path_factory.mktemp("decoding")
    for name, data in images().items():
        key = name.partition(".")[0]
        shape = (75, 50) if key == "turned" else (50, 75)
        mask = np.where(np.add.outer(np.arange(shape[0]), np.arange(shape[1])) < 30, 255, 0)
        for side, file, content in (("images", name, data), ("masks", f"{key}.png", png(mask, GREY))):
            (folder / side).mkdir(exist_ok=True)
            (folder / side / file).write_bytes(content)
    return folder


def test_a_job_with_all_decoding_options(source, tmp_path, ray_cluster, make_job):
    output, display = str(tmp_path / "out"), Display()

    def run(**options) -> dict:
        return run_job(make_job(source / "images", source / "masks", output, **options), display)

    report = run(**RULES, **LIMITS, chunk_rows=4)
    assert {row["key"]: row["error"] for row in rejects_of(output)} == REJECTED
    assert report["encoded"] == len(images()) - len(REJECTED)

    (warning,) = [line for line in display.lines if line.startswith("warning: ")]
    assert "look inverted: half of 10 masks cover" in warning
    masks = whole_report(output)["this_run"]["masks"]
    assert warning == f"warning: {masks['warning']}"
    assert (masks["rows"], masks["empty"], masks["full"]) == (10, 0, 0)
    assert masks["median_percent"] == pytest.approx(100 * (1 - 450 / 3750), abs=4)

    decoder = PairDecoder(sizing=Sizing(multiple=8, buckets=96 * 96, bucket_step=32), mask_polarity="black")
    for row in iter_rows(output):
        image = decoder.image(Path(row["image_uri"]).read_bytes())
        assert (row["source_height"], row["source_width"]) == (image.source_height, image.source_width)
        assert (row["resized_height"], row["resized_width"]) == image.geometry[:2]
        assert (row["crop_top"], row["crop_left"]) == image.geometry.crop[:2]
        assert row["noise_mask"].shape == (1, *image.geometry.crop[2:])
        assert not {side % 32 for side in row["noise_mask"].shape[1:]} - {0}
        assert row["noise_mask"][0, -1, -1] == 1
        if row["key"] == "turned":
            turned = row["resized_height"], row["resized_width"]
    assert turned == (128, 85)  # 300 x 200 upright, on its way to 128 x 64

    verdict = verify_output(VerifyOptions(output=output, sample=100), display.say)
    assert (verdict.problems, verdict.reencoded.rows, verdict.reencoded.other_masks) == ([], 10, 0)

    with pytest.raises(UsageError, match="buckets: 9216 in the output, 4096 now; icc: srgb in the output, ignore now"):
        run(**RULES | {"icc": "ignore", "buckets": 64 * 64}, **LIMITS, chunk_rows=4)
    again = run(**RULES, max_pixels=160_000, max_bytes=200_000, chunk_rows=4, retry_rejected=True)
    assert (again["encoded"], again["this_run"]["masks"]["rows"]) == (12, 2)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_job_encodes_or_rejects_each_of_2000_mutated_files(tmp_path, ray_cluster, make_job):
    """Each file becomes a row or a reject with the error that decoding it alone gives."""
    limit = {"max_pixels": 100_000}
    decoder, wanted = PairDecoder(sizing=Sizing(multiple=8), **limit), Counter()
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    suffixes = ("jpg", "png", "webp", "gif", "tif", "bmp")
    for number, data in enumerate(mutations.mutated(2_000, seed=1)):
        (tmp_path / "images" / f"{number}.{suffixes[number % 6]}").write_bytes(data)
        (tmp_path / "masks" / f"{number}.png").write_bytes(png(mutations.LEVELS, GREY))
        wanted[mutations.outcome(decoder, data, as_mask=False)] += 1
    report = run_job(make_job(tmp_path / "images", tmp_path / "masks", tmp_path / "out", **limit), Display())
    counters = report["this_run"]["counters"]
    print(
        f"\n{report['encoded']:,} of 2,000 mutated files encoded, rejected: {json.dumps(report['rejected_by_error'])}"
    )
    print(f"{report['this_run']['seconds']:.1f} s, of which decoding took {counters['decode_s']:.1f} s of a core")
    assert report["encoded"] == wanted.pop("decoded")
    assert report["rejected_by_error"] == dict(sorted(wanted.items()))
    assert storage.read(str(tmp_path / "out/_report.json"))
