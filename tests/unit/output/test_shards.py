"""Runs that share an output: what each of them encodes when they start, end and grow at different times."""

import itertools
import threading
import time

import pytest

from inpaint_encode.errors import UsageError
from inpaint_encode.output import planner, shards
from inpaint_encode.output.lease import acquire_lease
from inpaint_encode.output.resume import job_record, open_output, row_metadata
from inpaint_encode.output.shards import SharedRemaining, hold_output, lease_path
from inpaint_encode.output.state import FOLDERS
from inpaint_encode.settings import RunOptions
from inpaint_encode.sources import open_source
from inpaint_encode.sources import pairs as source_pairs
from tests.indexed import CHUNK_ROWS, IndexedRun, numbered, write_pairs
from tests.metadata import VAE


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    """Units of eight pairs: two chunks."""
    for module in (source_pairs, planner):
        monkeypatch.setattr(module, "BATCH_PAIRS", 8)
    monkeypatch.setattr(shards, "_POLL_S", 0.05)


class SharedRun(IndexedRun):
    """A run with ``--shard``; a thread plans, as in a job, and `commit_next` waits for work."""

    def __init__(self, output, make_job, pairs, shard):
        job = make_job("", "", output, pairs=str(pairs), chunk_rows=CHUNK_ROWS, shard=shard)
        self.metadata = row_metadata(job.rows, job.decoding, VAE)
        source, self.path = open_source(job.source), lease_path(job.run)
        self.lease = acquire_lease(f"{output}/{self.path}", lambda _: None)
        self.lease.__enter__()
        record = job_record(job, self.metadata, source.extra_columns)
        self.state, inventory = open_output(output, record, overwrite=False, token=self.lease.token, lease=self.path)
        self.said, self.stopped = [], threading.Event()
        self.left = SharedRemaining(self.state, inventory, job, source, self.said.append, self.stopped)
        self.results, self.receipts, self.warnings = dict(self.left.done), [], []
        self.tables, self.ended = [], False
        self._thread = threading.Thread(target=self._feed, daemon=True)
        self._thread.start()

    def _feed(self):
        for table in self.left.work():
            self.tables.append(table)
        self.ended = True

    def wait_until(self, condition):
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def commit_next(self):
        """Commit the next table of work; return the names of its chunks, None if there is no more."""
        self.wait_until(lambda: self.tables or self.ended)
        if not self.tables:
            return None
        self.work = self.tables.pop(0).to_pylist()
        names = [work["chunk"] for work in self.work]
        self.commit()
        for name in names:
            self.left.note_committed(name)
        return names

    def commit_all(self):
        return list(itertools.chain(*iter(self.commit_next, None)))

    def end(self):
        self.stopped.set()
        self._thread.join()
        self.left.close()
        self.left.index._pool.shutdown()
        self.lease.__exit__()
        return self


@pytest.fixture
def start(tmp_path, make_job):
    def begin(shard, count=24):
        pairs = write_pairs(tmp_path / "pairs.jsonl", numbered(count))
        return SharedRun(str(tmp_path / "out"), make_job, pairs, shard)

    return begin


def test_a_run_takes_no_shard_of_a_run_that_starts_a_little_later(start):
    first = start("0/2")
    first.wait_until(lambda: first.left.planner.complete and len(first.tables) == 2)
    time.sleep(0.3)
    second = start("1/2")
    assert first.commit_all() == ["000000-00000", "000000-00001", "000002-00000", "000002-00001"]
    assert second.commit_all() == ["000001-00000", "000001-00001"]
    second.finish()
    first.finish()


def test_a_run_takes_over_the_shards_of_runs_that_ended_while_it_encoded(start):
    first, second = start("0/2"), start("1/2")
    first.wait_until(lambda: len(first.tables) == 2)
    second.end()
    assert len(first.commit_all()) == 6
    assert first.said == ["taking over what the run with --shard 1/2 has left"]
    first.finish()


def test_a_run_goes_on_when_another_run_has_planned_a_source_that_grew(start):
    first = start("0/3")
    first.wait_until(lambda: first.left.planner.complete)
    second = start("2/3", count=72)
    assert "000005-00000" in [name for _ in range(2) for name in second.commit_next()]
    first.commit_all()
    assert len(first.left.log.units) == 9
    assert first.said == ["taking over what the run with --shard 1/3 has left"]
    second.commit_all()
    first.finish()
    second.finish()


def test_a_run_without_a_shard_does_not_wait_for_runs_that_have_ended(start, tmp_path):
    run = start("0/1")
    run.commit_all()
    run.finish()
    said = []
    with hold_output(str(tmp_path / "out"), RunOptions(), said.append):
        assert said == []
    run = start("0/1")
    with (
        pytest.raises(UsageError, match="is writing to this output"),
        hold_output(run.state.output, RunOptions(), said.append),
    ):
        pass
    run.end()


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("shard", ["", "0/2"])
def test_a_folder_of_an_output_that_is_a_link_is_refused(tmp_path, folder, shard):
    """A run would write to the other folder, and delete files there."""
    (tmp_path / "home").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / folder).symlink_to("../home")
    with (
        pytest.raises(UsageError, match=f"out/{folder} is a link to another folder"),
        hold_output(f"{tmp_path}/out", RunOptions(shard=shard), print),
    ):
        pass
    assert list((tmp_path / "home").iterdir()) == []


def test_an_output_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    with hold_output(f"{tmp_path}/out", RunOptions(), print):
        assert [path.name for path in (tmp_path / "disk").iterdir()] == ["_lease.json"]


def test_other_files_among_the_leases_are_no_leases(tmp_path):
    """A run waits only for files with the name of a lease."""
    (tmp_path / "_leases").mkdir()
    (tmp_path / "_leases" / "notes.txt").write_text("mine")
    lines = []
    with hold_output(str(tmp_path), RunOptions(), lines.append):
        assert lines == []
