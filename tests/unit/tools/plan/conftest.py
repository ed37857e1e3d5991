"""A source with good and bad images, and the true sizes of its images."""

import io
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from inpaint_encode.demo.pairs import write_random_pairs
from inpaint_encode.output.report import RunStats, write_report
from inpaint_encode.output.state import ChunkResult
from inpaint_encode.settings import Chunks, PlanOptions, RowSettings, Source
from inpaint_encode.settings.commands import Estimation, PlannedVae
from inpaint_encode.sources import LeftOut
from inpaint_encode.tools.plan.estimate import JobEstimate, estimate

PAIRS, CHUNK_ROWS = 120, 16
SCALE_FACTOR, CHANNELS = 8, 4
BAD = {"image.not_an_image": 2, "image.corrupt": 1, "image.unsupported": 1, "size.too_small": 1}


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    """Good pairs of a few sizes, a rotated one, images that must be rejected, and files that belong to no pair."""
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
        estimation=Estimation(**estimation),
    )


def estimate_of(folder, **options) -> JobEstimate:
    return estimate(options_for(folder, **options), lambda line: None)


def true_sizes(folder: Path) -> list[tuple[int, int] | None]:
    """Size of each pair's decoded image after the crop, in the order of the keys; None if it must be rejected."""
    images = {str(path.relative_to(folder / "images").with_suffix("")): path for path in images_of(folder)}
    return [true_size(images[key]) for key in sorted(images)]


def images_of(folder: Path) -> list[Path]:
    paths = (folder / "images").rglob("*.*")
    return [path for path in paths if path.suffix != ".txt" and path.stem != "alone"]


def true_size(path: Path) -> tuple[int, int] | None:
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            size = upright.height // SCALE_FACTOR * SCALE_FACTOR, upright.width // SCALE_FACTOR * SCALE_FACTOR
            return size if min(size) and upright.mode != "F" else None
    except (OSError, ValueError):
        return None


def write_run(output, marks, *, pairs, rows=None) -> float:
    """Write the real report of a run; return the rate between its first and its last chunk.

    Args:
        output: folder or prefix.
        marks: of each chunk the seconds since the run's start, and the pairs decided by then; one in ten is a reject.
        pairs: of the whole output.
        rows: settings for the report's job.
    """
    run, before = RunStats(), 0
    for seconds, decided in marks:
        run.started = time.monotonic() - seconds
        rejected = (decided - before) // 10
        errors = {"image.truncated": rejected}
        run.add(ChunkResult(decided - before - rejected, rejected, errors, 1_000, version="1", rejects_version="1"))
        before = decided
    others = pairs - run.decided
    whole = RunStats.of([ChunkResult(run.encoded + others, run.rejected, {}, 1_000, version="1", rejects_version="1")])
    job = {"job": "0", "rows": rows or {}}
    write_report(f"{output}/_report.json", job, {"pairs": pairs}, LeftOut(), whole, run)
    return (marks[-1][1] - marks[0][1]) / (marks[-1][0] - marks[0][0]) if len(marks) > 1 else 0.0
