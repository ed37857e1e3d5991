"""Runs of a job without Ray and without a VAE: chunks are planned and committed as the driver and its workers do it."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

import inpaint_encode.output.rows
from inpaint_encode.core.chunk import Reject
from inpaint_encode.output import plan
from inpaint_encode.output.lease import acquire_lease
from inpaint_encode.output.resume import Remaining, job_record, open_output, row_metadata
from inpaint_encode.output.rows import rejects_table
from inpaint_encode.reader import Output
from inpaint_encode.reader.groups import RowGroupIndex
from inpaint_encode.schema import data_schema
from inpaint_encode.sources import open_source
from inpaint_encode.stores import storage
from tests.metadata import VAE
from tests.plans import write_lines
from tests.rows import encoded_pair, groups_of

CHUNK_ROWS, GROUP_ROWS, SIDE = 4, 2, 16


class IndexedRun:
    """A run of a job: what is left is planned when the run begins, and chunks are committed by `commit`.

    Args:
        output: folder or prefix.
        make_job: the fixture.
        pairs: list of pairs.
        options: of the job.
    """

    def __init__(self, output: str, make_job, pairs: Path, **options):
        job = make_job("", "", output, pairs=str(pairs), chunk_rows=CHUNK_ROWS, **options)
        self.metadata = row_metadata(job.rows, job.decoding, VAE)
        source = open_source(job.source)
        self.lease = acquire_lease(f"{output}/_lease.json", lambda _: None)
        record = job_record(job, self.metadata, source.extra_columns)
        self.state, inventory = open_output(output, record, overwrite=job.output.overwrite, token=self.lease.token)
        self.left = Remaining(self.state, inventory, job, source)
        self.work = [row for table in self.left.work() for row in table.to_pylist()]
        self.results, self.receipts, self.warnings = dict(self.left.done), [], []
        if self.work:
            self.state.remove_note()

    def commit(self, most: int | None = None, rejected: Iterable[str] = ()) -> "IndexedRun":
        """Commit the next chunks, and write their receipts; these keys are rejected."""
        chunks, self.work = self.work[:most], self.work[len(self.work[:most]) :]
        for work in chunks:
            pairs = plan.read_chunk(work["part"], work["chunk"], work["hash"])
            pairs = pairs.filter(pairs["encode"]) if work["keep"] else pairs
            keys = pairs["key"].to_pylist()
            rows = [encoded_pair(key, np.ones((4, 2, 2), np.float32), np.zeros((SIDE, SIDE), np.uint8)) for key in keys]
            rejects = [Reject(row.pair, "image.truncated", "cut") for row in rows if row.pair.key in set(rejected)]
            rows = [row for row in rows if row.pair.key not in set(rejected)]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(inpaint_encode.output.rows, "ROW_GROUP_PIXELS", GROUP_ROWS * SIDE**2)
                groups, schema = groups_of(rows, self.metadata) if rows else ([], data_schema(self.metadata))
                result = self.state.commit(work, groups, schema, rejects_table(rejects))
            receipt = {**work, **result.to_receipt(), "counters": [], "fatal": None}
            self.results[work["chunk"]] = result
            self.receipts.append(receipt)
            self.left.index.add(receipt, self.results)
        if self.receipts:
            self.state.write_receipts(f"{len(self.results)}-{self.lease.token[:4]}", 0, self.receipts)
            self.receipts = []
        return self

    def finish(self) -> "IndexedRun":
        """End the run as one that has processed all chunks."""
        self.left.finish(self.results, self.warnings.append)
        return self.end()

    def end(self) -> "IndexedRun":
        """Release the lease. Without `finish`, this is a killed run whose finished units have their index."""
        self.left.index._pool.shutdown()
        storage.delete(f"{self.state.output}/_lease.json")
        return self


@pytest.fixture(name="pairs")
def pairs_fixture(tmp_path):
    """Return a list of ten pairs."""
    return write_pairs(tmp_path / "list.jsonl", numbered(10))


@pytest.fixture(name="output", params=["disk", "s3"])
def output_fixture(request, tmp_path):
    """Return an unused folder, and an unused prefix of a bucket."""
    return str(tmp_path / "out") if request.param == "disk" else request.getfixturevalue("s3").uri(tmp_path.name)


def write_pairs(path: Path, keys: Iterable[str]) -> Path:
    """Write a list of pairs with these keys."""
    write_lines(path, ({"image": f"{key}.png", "mask": f"{key}-mask.png"} for key in keys))
    return path


def numbered(count: int) -> list[str]:
    """Return keys in order."""
    return [f"k{number:03}" for number in range(count)]


def read_by_footers(output: str) -> RowGroupIndex:
    """Return the row groups of an output as its footers have them."""
    return RowGroupIndex.build(Output.list(output))
