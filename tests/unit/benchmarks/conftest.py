import pytest

from jobs.benchmarks import threads
from jobs.benchmarks.data import PairSet, write_pairs

SIZES = ((64, 64), (83, 61), (64, 96), (75, 130))


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """Ten pairs of four small sizes, eight of them different."""
    return write_pairs(tmp_path_factory.mktemp("pairs"), PairSet("four small sizes", SIZES), 10, distinct=8)


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other on a busy machine make small work slow."""
    with threads.one_thread():
        yield
