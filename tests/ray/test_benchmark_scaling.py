"""The scaling benchmark at tiny sizes: all chunks are written, and ratios follow from figures."""

import math

import pytest

from jobs.benchmarks.scale import scale_sections


@pytest.mark.long
def test_each_section_follows_from_its_figures(tmp_path):
    sections = scale_sections(tmp_path, quick=True, images_per_second=100.0)
    assert outputs_of(tmp_path) == {"pairs-64": 8, "pairs-128": 16, "workers-1": 6, "workers-2": 12, "store": 8}
    for section in sections:
        assert len(values_of(section)) == len(section.figures)
        assert all(math.isfinite(value) for value in values_of(section).values())
    assert [section.measured for section in sections] == [True, True, True, False]
    pairs, workers, store, extrapolation = sections
    check_pairs(pairs)
    check_workers(workers)
    check_store(values_of(store))
    check_extrapolation(values_of(extrapolation), values_of(pairs), values_of(store))


def values_of(section):
    return {figure.name: figure.median for figure in section.figures}


def ratios_of(section):
    return {ratio.name: ratio.figure.median for ratio in section.ratios}


def outputs_of(folder):
    """Number of data files, one per chunk, by workload."""
    return {out.parent.name: len(list(out.glob("*.parquet"))) for out in folder.glob("*/out")}


def check_pairs(section):
    pairs, ratios = values_of(section), ratios_of(section)
    for size in ("64", "128"):
        before, peak = (pairs[f"{size} pairs, driver memory, {when}"] for when in ("before", "peak"))
        assert 50 < before <= peak < 4_000
        assert pairs[f"{size} pairs, CPU of the driver"] > 0
    more = 120 * pairs["128 pairs, wall"] - 56 * pairs["64 pairs, wall"]  # without the first chunk
    assert math.isclose(pairs["a pair more, 64 to 128, wall"], more / 64)
    small, large = (f"{size} pairs, driver memory, peak" for size in ("64", "128"))
    assert ratios[f"{large} over {small}"] == pairs[large] / pairs[small]


def check_workers(section):
    rates, ratios = values_of(section), ratios_of(section)
    assert ratios["2 workers over the limit of the sleep"] == rates["2 workers"] / 400
    assert ratios["2 workers over linear"] == rates["2 workers"] / (2 * rates["1 worker"])


def check_store(store):
    assert store["pixels and masks"] == 32 * 512 * 512 * 3.125 / 1e6
    assert 0 < store["peak use of the store"] <= store["object store"]


def check_extrapolation(result, pairs, store):
    """800 images a second on eight GPUs, in chunks of 256."""
    assert math.isclose(result["8 GPUs, CPU without the VAE"], 0.8 * store["CPU"])
    assert math.isclose(result["8 GPUs, GET"], 800 * (2 + 2 / 256))
    assert math.isclose(result["8 GPUs, CPU of the driver"], 800 / 256 * pairs["128 pairs, CPU of the driver"] / 1000)
    assert math.isclose(result["64 GPUs, to the store"], 8 * result["8 GPUs, to the store"])
    assert 27 < result["GPUs until one prefix reaches 5,500 GET/s"] < 28
