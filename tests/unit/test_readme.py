"""The README's table of layouts: each row's files are made, and its options read, paired, fetched and decoded them."""

import io
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from inpaint_encode.cli.commands import app
from inpaint_encode.core.chunk import DecodedPair, Reject
from inpaint_encode.core.decode import PairDecoder
from inpaint_encode.core.geometry import Sizing
from inpaint_encode.job.stages import fetch_stage
from inpaint_encode.job.transfer import unpack_chunk, unpack_decoded
from inpaint_encode.output.plan_log import PlanLog
from inpaint_encode.output.planner import Planner
from inpaint_encode.output.state import OutputState
from inpaint_encode.schema import WORK, extra_columns_schema, unpack_mask
from inpaint_encode.settings import Chunks, EncodeJob, PlanOptions, RunOptions
from inpaint_encode.sources import open_source
from inpaint_encode.stores import storage
from inpaint_encode.tools.plan.estimate import estimate
from tests.unit.sources.make_sources import write_parquet, write_tar

README = Path(__file__).parents[2] / "README.md"
LAYOUTS = re.findall(r"^\| (`.*?) \| `(--.*?)` \| (`.*?) \|$", README.read_text(), re.MULTILINE)


def picture(*, transparent: bool = False) -> bytes:
    file = io.BytesIO()
    image = Image.new("RGBA", (40, 32), (255, 0, 0, 255))
    if transparent:
        image.paste((0, 0, 0, 0), (8, 8, 16, 16))
    image.save(file, "PNG")
    return file.getvalue()


def mask() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.kron([[0, 255], [0, 0]], np.ones((16, 20))).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def in_a_list(columns: tuple[str, str]) -> dict:
    """Two masks of an image, with ids."""
    images, masks = columns
    return {images: ["a/042.jpg"] * 2, masks: ["m/1.png", "m/2.png"], "id": [7, 8], "caption": ["x", "y"]}


def make(folder: str, layout: str, options: str) -> None:
    """The files that the row's first cell names, and those that a list among them names."""
    names = re.findall("`([^`]*)`", layout)
    lists = [name for name in names if re.search(r"\.(csv|parquet|tar)$", name)]
    files = [name for name in names if re.search(r"\.(jpg|png)$", name)]
    for name in files or ["a/042.jpg", "m/1.png", "m/2.png"]:
        is_mask = "mask" in name or name.startswith("m/")
        storage.write(f"{folder}/{name}", mask() if is_mask else picture(transparent="alpha" in options))
    for name in lists:
        if name.endswith(".tar"):
            members = {member: mask() if "mask" in member else picture() for member in files}
            write_tar(f"{folder}/{name}", {**members, "a/042.json": b"{}"})
        elif "in it" in layout:
            write_parquet(f"{folder}/{name}", {"image": [{"bytes": picture(), "path": ""}] * 2, "mask": [mask()] * 2})
        elif name.endswith(".csv"):
            lines = pa.table(in_a_list(("image", "mask"))).to_pylist()
            text = "\n".join([",".join(lines[0]), *(",".join(map(str, line.values())) for line in lines)])
            storage.write(f"{folder}/{name}", text.encode())
        else:
            write_parquet(f"{folder}/{name}", in_a_list(("url", "mask_url")))


def job_of(options: str, folder: str) -> EncodeJob:
    """What the command line makes of a row's options."""
    given = shlex.split(options.replace("…", folder))
    _, bound, _ = app.parse_args(
        ["encode", *given, "--vae", "x", "--output", "x"], print_error=False, exit_on_error=False
    )
    return bound.arguments["job"]


def planned(job: EncodeJob, output: str) -> dict:
    """Plan the job's pairs in one chunk; return its work."""
    source = open_source(job.source, job.access.to_access())
    log = PlanLog(OutputState(output, "01234567", "01234567"), extra_columns_schema(source.extra_columns))
    ((chunk,),) = Planner(log, source, Chunks(), RunOptions(), lambda unit: ()).plan()
    planned = log.chunks[chunk]
    return {"chunk": chunk, "revision": 0, "hash": planned.hash, "part": planned.part, "keep": False}


def fetched(job: EncodeJob, work: dict) -> list[DecodedPair | Reject]:
    """Take the chunk through the first stage."""
    channel, polarity = job.decoding.mask_channel, job.decoding.mask_polarity
    decoder = PairDecoder(sizing=Sizing(multiple=8), mask_channel=channel, mask_polarity=polarity)
    row = fetch_stage(
        pa.Table.from_pylist([work], WORK), decoder=decoder, access=job.access.to_access(), max_bytes=2**20, threads=4
    )
    _, _, fatal, (decoded,) = unpack_chunk(row, "decoded")
    assert fatal is None
    return unpack_decoded(decoded)


def test_the_table_is_found():
    assert len(LAYOUTS) >= 10


@pytest.mark.parametrize(("layout", "options", "keys"), LAYOUTS, ids=[options for _, options, _ in LAYOUTS])
def test_each_row_of_the_table_is_a_command(layout, options, keys, tmp_path):
    folder = str(tmp_path / "given")
    make(folder, layout, options)
    job = job_of(options, folder)
    decoded = fetched(job, planned(job, f"{tmp_path}/out"))
    assert [row.pair.key for row in decoded] == re.findall("`([^`]*)`", keys)
    assert [row for row in decoded if isinstance(row, Reject)] == []
    for row in decoded:
        repainted = unpack_mask(row.mask, *row.image.pixels.shape[:2])
        assert repainted.any() and not repainted.all()
        if "--random-masks" not in options:
            assert repainted.sum() == (8 * 8 if "--mask-channel alpha" in options else 16 * 20)
    assert len({id(row.image) for row in decoded}) == len({row.pair.image_uri for row in decoded})


REQUESTS = {"--pairs …/data": 8, "--pairs …/shards": 4, "--images … --mask-channel alpha": 3}
"""For files; of a pair in two prefixes it is four: two files, a part of the plan and the lease."""


@pytest.mark.parametrize(("layout", "options", "keys"), LAYOUTS, ids=[options for _, options, _ in LAYOUTS])
def test_each_row_of_the_table_can_be_foretold(layout, options, keys, tmp_path):
    make(str(tmp_path), layout, options)
    job = job_of(options, str(tmp_path))
    forecast = estimate(PlanOptions(source=job.source, decoding=job.decoding), lambda _: None)
    assert forecast.pairs == len(re.findall("`([^`]*)`", keys))
    assert [(size.height, size.width, size.images) for size in forecast.sizes] == [(32, 40, forecast.pairs)]
    assert (forecast.rejects, forecast.unpaired_images, forecast.unpaired_masks) == ([], 0, 0)
    if options in REQUESTS:
        assert forecast.requests.get == REQUESTS[options]


def test_a_tar_that_has_changed_since_it_was_planned_is_rejected_by_name(tmp_path):
    write_tar(f"{tmp_path}/x.tar", {"a.png": picture(), "a.mask.png": mask(), "b.png": picture(), "b.mask.png": mask()})
    job = job_of("--pairs …/x.tar", str(tmp_path))
    work = planned(job, f"{tmp_path}/out")
    write_tar(f"{tmp_path}/x.tar", {"0.txt": b"1", "a.png": picture(), "a.mask.png": mask()})
    decoded = fetched(job, work)
    assert [row.error for row in decoded] == ["fetch.changed"] * 2
    assert "run again with --refresh to use the new version" in decoded[0].message
