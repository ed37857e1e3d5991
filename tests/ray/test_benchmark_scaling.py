"""The scaling benchmark on a tiny scale: it runs, its counts are whole, its ratios follow from its figures."""

import math

import pytest

from jobs.benchmarks.scale import scale_record


@pytest.mark.long
def test_each_section_follows_from_its_figures(tmp_path):
    sections = scale_record(tmp_path, quick=True, images_per_second=100.0)
    assert outputs_of(tmp_path) == {"pairs-64": 8, "pairs-128": 16, "workers-1": 6, "workers-2": 12, "store": 8}
    for section in sections:
        assert len(values_of(section)) == len(section.figures)
        assert all(math.isfinite(value) for value in values_of(section).values())
    assert [section.measured for section in sections] == [True, True, True, False]
    growth, workers, store, paper = sections
    check_growth(growth)
    check_workers(workers)
    check_store(values_of(store))
    check_paper(values_of(paper), values_of(growth), values_of(store))


def values_of(section):
    return {figure.name: figure.median for figure in section.figures}


def ratios_of(section):
    return {ratio.name: ratio.figure.median for ratio in section.ratios}


def outputs_of(folder):
    """Number of data files, one per chunk, by load."""
    return {out.parent.name: len(list(out.glob("*.parquet"))) for out in folder.glob("*/out")}


def check_growth(section):
    growth, ratios = values_of(section), ratios_of(section)
    for size in ("64", "128"):
        assert 50 < growth[f"{size} pairs, driver before"] <= growth[f"{size} pairs, driver's peak"] < 4_000
        assert growth[f"{size} pairs, CPU of the driver"] > 0
    more = 120 * growth["128 pairs, wall"] - 56 * growth["64 pairs, wall"]  # of what came after the first chunk
    assert math.isclose(growth["a pair more, 64 to 128, wall"], more / 64)
    drivers = (growth[f"{size} pairs, driver's peak"] for size in ("128", "64"))
    assert ratios["128 pairs, driver's peak over 64 pairs, driver's peak"] == next(drivers) / next(drivers)


def check_workers(section):
    rates, ratios = values_of(section), ratios_of(section)
    assert ratios["2 workers over the pace of the sleep"] == rates["2 workers"] / 400
    assert ratios["2 workers over linear"] == rates["2 workers"] / (2 * rates["1 worker"])


def check_store(store):
    assert store["pixels and masks that went through it"] == 32 * 512 * 512 * 3.125 / 1e6
    assert 0 < store["in the store at most"] <= store["object store"]


def check_paper(paper, growth, store):
    """800 images a second on eight GPUs, in chunks of 256."""
    assert math.isclose(paper["8 GPUs, CPU for all but the VAE"], 0.8 * store["CPU"])
    assert math.isclose(paper["8 GPUs, GET"], 800 * (2 + 2 / 256))
    assert math.isclose(paper["8 GPUs, the driver's work"], 800 / 256 * growth["128 pairs, CPU of the driver"] / 1000)
    assert math.isclose(paper["64 GPUs, to the store"], 8 * paper["8 GPUs, to the store"])
    assert 27 < paper["GPUs until one prefix gives its 5,500 GET/s"] < 28
