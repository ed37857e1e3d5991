"""A small output without a VAE, and `verify` without Ray."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

from inpaint_encode.output.lease import acquire_lease
from inpaint_encode.output.notes import metadata_of_job
from inpaint_encode.output.state import OutputState
from inpaint_encode.tools.verify.chunk_checks import check_chunk
from inpaint_encode.tools.verify.findings import VerifyResult
from inpaint_encode.tools.verify.output_checks import check_output
from inpaint_encode.tools.verify.repair import Repair
from tests.damage import CHUNK_ROWS
from tests.listed import ListedOutput

CHUNKS = 4


@pytest.fixture(scope="session")
def intact(tmp_path_factory, make_job) -> Path:
    """A finished output of 4 chunks of 3 pairs; the first pair is rejected. Tests must not change it."""
    listed = ListedOutput(tmp_path_factory.mktemp("intact"), make_job, CHUNK_ROWS, rejected=["000/000000"])
    names = [f"000/{number:06}" for number in range(CHUNKS * CHUNK_ROWS)]
    listed.write_list([{"image": f"{name}.png", "mask": f"{name}-mask.png"} for name in names])
    listed.encode()
    return listed.output


@pytest.fixture
def output(intact, tmp_path) -> Path:
    """A copy of the intact output."""
    return Path(shutil.copytree(intact, tmp_path / "out"))


@pytest.fixture(scope="session")
def verify():
    """Check an output in this process, and repair it."""

    def run(output: Path, *, repair: bool = False, dry_run: bool = False) -> VerifyResult:
        job = json.loads((output / "_job.json").read_text())
        with nullcontext() if dry_run else acquire_lease(f"{output}/_lease.json", print) as lease:
            state = OutputState(str(output), job["job"], lease.token if lease else "", tuple(job["replaces"]))
            inventory, metadata = state.inventory(), metadata_of_job(job)
            result, checked = check_output(
                state,
                inventory,
                metadata,
                lambda chunks: (check_chunk(chunk, state, metadata) for chunk in chunks),
                is_old="layout" not in job,
            )
            if repair:
                repairs = Repair(result, checked, state, inventory)
                if not dry_run:
                    repairs.run()
        return result

    return run
