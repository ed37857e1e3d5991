"""The checks of one chunk with optional columns and either layout of masks, and files that cannot be read."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from inpaint_encode.core.chunk import EncodedPair
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.output.parquet import parquet_bytes
from inpaint_encode.output.plan import chunk_hash
from inpaint_encode.output.state import OutputState
from inpaint_encode.schema import PAIRS, REJECTS
from inpaint_encode.stores import storage
from inpaint_encode.tools.verify.chunk_checks import check_chunk
from inpaint_encode.tools.verify.findings import ChunkFindings, PlannedChunk
from tests.metadata import row_metadata
from tests.rows import encoded_pair, groups_of

HEIGHT, WIDTH = 3, 4
PAIR = {"image_uri": "i", "mask_uri": "m", "mask_index": 0, "image_version": "", "mask_version": "", "encode": True}
CHUNK = "000000-00000"


OTHER = PlannedChunk("000000-00005", 1, "", "", "", has_rejects=True)


def metadata(**changes: object) -> RowMetadata:
    return row_metadata(samples_dtype="float16", also_original=True, latent_mask="comfyui", **changes)


def row(channels: int = 4, **values: object) -> EncodedPair:
    """Return a row with a random mask, and ComfyUI's mask of the latent."""
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 2, (8 * HEIGHT, 8 * WIDTH), np.uint8)
    latent_mask = mask.reshape(HEIGHT, 8, WIDTH, 8)[:, 3:5, :, 3:5].mean(axis=(1, 3)).astype(np.float16)[None]
    samples = rng.normal(size=(channels, HEIGHT, WIDTH)).astype(np.float16)
    return encoded_pair("a", samples, mask, **{"original_samples": samples, "latent_mask": latent_mask, **values})


@pytest.fixture
def check(tmp_path) -> Callable[..., ChunkFindings]:
    """Write a chunk of these rows and check it, planned with revision 1, by default with the hash of its pairs."""

    def run(rows: list[EncodedPair], written: RowMetadata, **planned: object) -> ChunkFindings:
        state, part = OutputState(str(tmp_path), "0a1b2c3d", ""), f"{tmp_path}/_plan/part"
        pairs = pa.Table.from_pylist([{**PAIR, "key": one.pair.key, "chunk": 0, "line": 0} for one in rows], PAIRS)
        storage.write(part, parquet_bytes(pairs))
        about = {"chunk": CHUNK, "revision": 1, "hash": chunk_hash(pairs), "part": part}
        state.commit({**about, "keep": False}, *groups_of(rows, written), REJECTS.empty_table(), check=lambda: None)
        about |= {"footer_hash": "", "has_rejects": False}
        return check_chunk(PlannedChunk(**about | planned), state, written)

    return run


@pytest.mark.parametrize("mask_encoding", ["tensor", "packed"])
@pytest.mark.parametrize(("posterior", "channels"), [("mean", 4), ("moments", 8)])
def test_correct_rows_have_no_problem(check, mask_encoding, posterior, channels):
    findings = check([row(channels)], metadata(mask_encoding=mask_encoding, posterior=posterior))
    assert (findings.problems, findings.fatal, findings.encoded, findings.revision) == ([], None, 1, 1)


def test_the_size_of_packed_masks_need_not_be_a_multiple_of_8(check):
    samples = np.zeros((4, 3, 3), np.float16)
    plain = row_metadata(vae_scale_factor=1, crop_multiple=1, mask_encoding="packed")
    assert check([encoded_pair("a", samples, np.ones((3, 3), np.uint8))], plain).problems == []


@pytest.mark.parametrize(
    ("latent_mask", "values", "problem"),
    [
        ("comfyui", np.full((1, HEIGHT, WIDTH), 2, np.float16), "latent_mask 12 of 12 values do not match"),
        ("diffusers", np.full((1, HEIGHT, WIDTH), 0.5, np.float16), "latent_mask 12 of 12 values are neither 0 nor 1"),
        ("diffusers", np.ones((1, HEIGHT, WIDTH), np.float16), ""),
        ("comfyui", np.ones((HEIGHT, WIDTH), np.float16), r"shapes latent_mask is \[3, 4\], but .* gives \[1, 3, 4\]"),
    ],
)
def test_latent_masks(check, latent_mask, values, problem):
    written = row_metadata(samples_dtype="float16", latent_mask=latent_mask)
    problems = [f"{one.check} {one.sentence}" for one in check([row(latent_mask=values)], written).problems]
    assert len(problems) == bool(problem)
    assert all(re.search(f"has 1 wrong rows of 1, the first a: {problem.partition(' ')[2]}", one) for one in problems)
    assert all(one.startswith(problem.partition(" ")[0]) for one in problems)


def test_original_samples_must_be_finite(check):
    infinite = np.full((4, HEIGHT, WIDTH), np.inf, np.float16)
    (problem,) = check([row(original_samples=infinite)], metadata()).problems
    assert (problem.check, "48 of 96 values are not finite" in problem.sentence) == ("samples", True)


@pytest.mark.parametrize(
    ("planned", "sentence"),
    [
        ({"revision": 0}, "has revision 1 in its footer, but the newest one of chunk 000000-00000 in the plan is 0"),
        ({"hash": "0" * 32}, "has other pairs than the plan has for this chunk, so a part of the plan was lost or"),
        ({"revision": -1, "hash": "", "part": ""}, ""),
        ({"part": ""}, ""),
    ],
)
def test_a_file_that_disagrees_with_the_plan_is_intact(check, planned, sentence):
    problems = check([row()], metadata(), **planned).problems
    assert [one.sentence[: len(sentence)] for one in problems] == ([sentence] if sentence else [])
    assert all(one.is_intact and one.check == "footer" for one in problems)


def test_a_rebuilt_chunk_has_the_hash_of_its_data_file_or_its_own(check):
    planned_hash = check([row()], metadata()).hash
    assert check([row()], metadata(), hash="1" * 32, footer_hash=planned_hash).problems == []
    assert check([row()], metadata(), footer_hash="1" * 32).problems == []
    assert len(check([row()], metadata(), hash="1" * 32, footer_hash="2" * 32).problems) == 1


def test_a_file_that_vanished_after_it_was_listed_is_a_problem(check, tmp_path):
    check([row()], metadata())
    state = OutputState(str(tmp_path), "0a1b2c3d", "")
    findings = check_chunk(OTHER._replace(part=f"{tmp_path}/_plan/part"), state, metadata())
    (problem,) = findings.problems
    assert (problem.check, "is missing now" in problem.sentence) == ("file", True)
    assert findings.revision is None


def test_a_plan_file_that_cannot_be_read_is_fatal(check, tmp_path):
    state = OutputState(str(tmp_path), "0a1b2c3d", "")
    findings = check_chunk(OTHER._replace(part=f"{tmp_path}/_plan/none"), state, metadata())
    assert re.search("its rejects or its plan cannot be read", findings.fatal)
    assert findings.problems == []


def test_a_file_without_the_footer_of_a_chunk_is_unreadable(check, tmp_path):
    check([row()], metadata())
    state = OutputState(str(tmp_path), "0a1b2c3d", "")
    groups, schema = groups_of([row()], metadata())
    Path(state.data_uri(CHUNK)).write_bytes(parquet_bytes(pa.concat_tables(groups).cast(schema)))
    planned = OTHER._replace(chunk=CHUNK, part=f"{tmp_path}/_plan/part", has_rejects=False)
    (problem,) = check_chunk(planned, state, metadata()).problems
    assert (problem.check, "its footer has no inpaint_encode.chunk" in problem.sentence) == ("file", True)
