import sys

from jobs.benchmarks.cpu import CpuReading
from jobs.benchmarks.driver import Commit, JobRun, store_statistics
from jobs.benchmarks.scale import Scale, store_section

COMMITS = tuple(Commit(float(n), 10 * n, 0.5 * n, 1000 * n) for n in range(5))
RUN = JobRun(COMMITS, CpuReading(8.0, 1), 0, 0, None, {})


def test_times_are_from_the_first_commit_to_the_last():
    assert (RUN.seconds, RUN.pairs) == (4.0, 40)
    assert (RUN.wall_ms_per_pair, RUN.cpu_ms_per_pair, RUN.driver_ms_per_chunk) == (100.0, 200.0, 500.0)
    assert RUN.driver_bytes_per_chunk == 1000
    assert RUN.rate(0.4, 0.9) == 10


def test_a_ray_without_the_private_api_gives_no_store_figures(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "ray._private.internal_api", None)
    assert store_statistics() is None
    assert "does not report its object store's use" in caplog.text
    section = store_section(RUN, Scale())
    assert [figure.name for figure in section.figures] == ["object store", "pixels and masks", "wall", "CPU"]
    assert "does not report" in section.text
