"""Counts of an output in every state, from metadata alone and in few requests."""

from concurrent.futures import ThreadPoolExecutor

import obstore
import pyarrow as pa
import pytest

from inpaint_encode.output.plan import chunk_name, revise
from inpaint_encode.reader import Output
from inpaint_encode.stores import s3 as clients
from inpaint_encode.stores import storage
from inpaint_encode.stores.s3 import forget_clients
from inpaint_encode.tools.inspect import summary
from inpaint_encode.tools.inspect.info import read_info
from inpaint_encode.tools.inspect.summary import OutputCounts, count_output, counter_meaning
from tests.buckets import point_clients_at
from tests.fabricated import CHUNK_PAIRS, JobOutput
from tests.proxy import FaultyProxy


@pytest.fixture
def written(tmp_path, make_job):
    return JobOutput(tmp_path / "out", make_job, also_original=True, latent_mask="comfyui", samples_dtype="float16")


def counted(written: JobOutput) -> OutputCounts:
    return count_output(Output.open(written.output))


def test_states_and_counts(written):
    written.plan(7)
    written.chunk(0)
    counts = counted(written)
    assert counts.state.startswith("in progress")
    assert (counts.planned, counts.encoded, counts.rejected, counts.files) == (7, None, None, 1)
    written.chunk(1, rejected=2)
    written.keep_receipts()
    counts = counted(written)
    assert (counts.finished, counts.planned, counts.encoded, counts.rejected, counts.files) == (False, 7, 4, 2, 2)
    written.end()
    assert counted(written).state == "not finished, and no run is writing to it"
    written.finish(6)
    found = counted(written)
    assert found.state.startswith("finished 20")
    assert (found.planned, found.encoded, found.rejected) == (6, 4, 2)
    assert found.rejected_by_error == {"image.truncated": 2}
    assert found.bytes == sum(one.data_bytes for _, one in written.committed)
    written.chunk(2)
    counts = counted(written)
    assert "; _report.json is from the run that finished 20" in counts.state
    assert (counts.finished, counts.encoded, counts.files) == (False, None, 3)


def test_planned_pairs_of_several_units_and_revisions(written, monkeypatch):
    written.plan(7)
    written.chunk(0)
    assert counted(written).planned == 7
    written.plan(3)
    assert counted(written).planned == 10
    current = written.log.read_unit(0)
    nothing, undecided = current.slice(0, 0), pa.array([], pa.int32())
    written.log.revise(0, revise(current, nothing, current["key"].slice(0, 2).combine_chunks(), undecided))
    assert counted(written).planned == 8
    monkeypatch.setattr(summary, "MAX_MARKERS", 2)
    assert counted(written).planned is None


def test_rows_are_unknown_with_too_many_receipts(written, monkeypatch):
    written.plan(6)
    for number in (0, 1):
        written.chunk(number)
        written.keep_receipts()
    monkeypatch.setattr(summary, "MAX_RECEIPT_FILES", 2)
    assert counted(written).encoded == 6
    monkeypatch.setattr(summary, "MAX_RECEIPT_FILES", 1)
    assert counted(written).encoded is None


@pytest.mark.parametrize("copies", [1, 1_100])
def test_requests_grow_only_with_pages_of_the_listing(s3, make_job, copies, monkeypatch):
    """A page has 1,000 objects; one footer is read for any number of files."""
    written = JobOutput(s3.uri(f"info-{copies}"), make_job)
    written.plan(3)
    written.chunk(0)
    written.keep_receipts()
    many(written, copies)
    with FaultyProxy(s3) as proxy, monkeypatch.context() as patch:
        point_clients_at(proxy.environment, patch)
        found = read_info(written.output)["counts"]
    forget_clients()
    assert found["files"] == copies
    assert found["encoded"] == (CHUNK_PAIRS if copies == 1 else None)
    assert proxy.counts["requests"] == 10 + copies // 1_000


def many(written, copies):
    """Copy the chunk's file to the names of other chunks."""
    bucket = written.output.removeprefix("s3://").partition("/")[0]
    data = storage.read(written.state.data_uri(chunk_name(0, 0))).data
    paths = [written.state.data_uri(chunk_name(0, number)).partition(f"{bucket}/")[2] for number in range(1, copies)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: obstore.put(clients.connect(bucket), path, data), paths))


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("batches_of_1", "batches of 1 image"),
        ("batches_of_2", "batches of 2 images"),
        ("batches_of_8", "batches of 5 to 8 images"),
        ("tiled", "images encoded in tiles"),
        ("of_a_later_version", ""),
    ],
)
def test_counters_are_explained(name, meaning):
    assert counter_meaning(name) == meaning
