"""A small output without a VAE, and `verify` without Ray."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from inpaint_encode.core.chunk import Reject
from inpaint_encode.output.lease import acquire_lease
from inpaint_encode.output.report import RunStats, write_report
from inpaint_encode.output.resume import metadata_of_job
from inpaint_encode.output.rows import rejects_table
from inpaint_encode.output.state import OutputState
from inpaint_encode.schema import PAIRS
from inpaint_encode.sources import FoundPairs
from inpaint_encode.tools.verify.chunk_checks import check_chunk
from inpaint_encode.tools.verify.findings import VerifyResult
from inpaint_encode.tools.verify.output_checks import check_output
from inpaint_encode.tools.verify.output_checks import repair as repair_output
from tests.damage import CHUNK_ROWS
from tests.outputs import PLAIN
from tests.rows import encoded_pair, groups_of

CHUNKS, JOB = 4, "0a1b2c3d"
NO_FILES = FoundPairs(pa.table({}), *[pa.chunked_array([[]], pa.string())] * 2, 0)


@pytest.fixture(scope="session")
def intact(tmp_path_factory) -> Path:
    """A finished output of 4 chunks of 3 pairs; the first pair is rejected. Tests must not change it."""
    output, rng = tmp_path_factory.mktemp("intact") / "out", np.random.default_rng(0)
    pair = {"image_uri": "i", "mask_uri": "m", "mask_index": 0, "image_version": "", "mask_version": "", "encode": True}
    keys = [f"000/{number:06}" for number in range(CHUNKS * CHUNK_ROWS)]
    plan = [{**pair, "key": key, "chunk": number // CHUNK_ROWS} for number, key in enumerate(keys)]
    results, receipts = [], []
    with acquire_lease(f"{output}/_lease.json", print) as lease:
        state = OutputState(str(output), JOB, lease.token)
        (part,) = state.write_plan(0, pa.Table.from_pylist(plan, PAIRS))
        for chunk in range(CHUNKS):
            rows = []
            for number, key in enumerate(keys[chunk * CHUNK_ROWS : (chunk + 1) * CHUNK_ROWS]):
                height, width = 2 + number, 3 + chunk
                samples = rng.normal(size=(4, height, width)).astype(np.float32)
                rows.append(encoded_pair(key, samples, rng.integers(0, 2, (8 * height, 8 * width), np.uint8)))
            rejected = [] if chunk else [rows.pop(0)]
            rejects = rejects_table([Reject(row.pair, "image.truncated", "it ends early") for row in rejected])
            work = {"chunk": chunk, "generation": 0, "part": state.uri(part), "keep": False}
            result = state.commit(work, *groups_of(rows, PLAIN), rejects)
            receipt = {**work, **{name: getattr(result, name) for name in result.__slots__}}
            receipts.append({**receipt, "errors": list(result.errors.items()), "counters": [], "fatal": None})
            results.append(result)
        state.write_receipts("20260102-0123", 0, receipts)
    write_report(f"{output}/_report.json", {}, len(keys), NO_FILES, RunStats.of(results), RunStats())
    rows_metadata = PLAIN.to_dict()
    about = {name: rows_metadata.pop(name) for name in ("vae_source", "versions")}
    (output / "_job.json").write_text(json.dumps({"job": JOB, "replaces": [], "rows": rows_metadata, **about}))
    return output


@pytest.fixture
def output(intact, tmp_path) -> Path:
    """A copy of the intact output."""
    return Path(shutil.copytree(intact, tmp_path / "out"))


@pytest.fixture(scope="session")
def verify():
    """Check an output in this process, and repair it."""

    def run(output: Path, *, repair: bool = False) -> VerifyResult:
        job = json.loads((output / "_job.json").read_text())
        with acquire_lease(f"{output}/_lease.json", print) as lease:
            state = OutputState(str(output), job["job"], lease.token, tuple(job["replaces"]))
            inventory, metadata = state.inventory(), metadata_of_job(job)
            result = check_output(
                state, inventory, lambda chunks: (check_chunk(chunk, state, metadata) for chunk in chunks)
            )
            if repair:
                repair_output(result, state, inventory)
        return result

    return run
