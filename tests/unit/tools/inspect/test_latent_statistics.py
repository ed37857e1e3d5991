"""Statistics of latents by channel, and rows that are unusual."""

import numpy as np

from inpaint_encode.reader import DataFile, Output
from inpaint_encode.tools.inspect.latent_statistics import channel_statistics, find_outliers, row_statistics
from inpaint_encode.tools.inspect.pictures import LatentColors
from inpaint_encode.tools.inspect.row_sample import RowLocation, RowSample
from tests.fabricated import latents, metadata, row, write_output


def read_statistics(output: Output) -> list:
    sample = RowSample(output, 0)
    return sample.map_rows(
        sample.draw(1_000), ["key", "samples"], lambda location, one: row_statistics(location, one, output.metadata)
    )


def test_statistics_are_those_of_all_values(small):
    channels = channel_statistics(read_statistics(small))
    values = np.concatenate([one.reshape(4, -1) for file in range(5) for one in latents(12, seed=file)], axis=1)
    values = values.astype(np.float64)
    assert np.allclose(channels.mean, values.mean(axis=1))
    assert np.allclose(channels.std, values.std(axis=1))
    assert (channels.minimum == values.min(axis=1)).all() and (channels.maximum == values.max(axis=1)).all()
    assert (channels.counts.sum(axis=1) == 60 * 6).all()
    assert ((channels.low > channels.minimum) & (channels.high < channels.maximum)).all()


def test_kept_cells_give_the_colors_of_all_values(small):
    found = LatentColors.fit([one.sample for one in read_statistics(small)])
    whole = LatentColors.fit([one for file in range(5) for one in latents(12, seed=file)])
    assert np.allclose(found.mean, whole.mean) and np.allclose(found.axes, whole.axes)


def test_statistics_of_moments_are_those_of_the_means(tmp_path):
    about = metadata(posterior="moments")
    both = [np.concatenate([one, one - 100]) for one in latents(3)]
    output = Output.open(str(write_output(tmp_path, [[row(str(at), one) for at, one in enumerate(both)]], about)))
    channels = channel_statistics(read_statistics(output))
    assert len(channels.mean) == 4 and channels.minimum.min() > -10


def statistics_with(folder, odd, count=40):
    them = [*latents(count - 1), odd]
    output = Output.open(str(write_output(folder, [[row(f"{at:03d}", one) for at, one in enumerate(them)]])))
    return read_statistics(output)


def test_an_unusual_mean_is_found(tmp_path):
    odd = latents(1, seed=9)[0]
    odd[2] += 8
    found = find_outliers(statistics_with(tmp_path, odd))
    assert found[0].key == "039" and found[0].location.row == 39
    assert found[0].reason.startswith(f"mean of channel 2 is {odd[2].astype(float).mean():.2f}; most rows have 2.")
    assert found[0].score > 10 and all(one.score < found[0].score for one in found[1:])


def test_an_unusual_spread_is_found(tmp_path):
    odd = latents(1, seed=9)[0]
    odd[1] = np.resize([-20, 21], odd[1].shape)
    assert find_outliers(statistics_with(tmp_path, odd))[0].reason.startswith("spread of channel 1 is 20.5")


def test_few_rows_have_no_outliers(tmp_path):
    assert find_outliers(statistics_with(tmp_path, latents(1)[0] + 100, count=19)) == []


def test_latents_with_nan_have_no_statistics(tmp_path):
    odd = latents(1)[0]
    odd[0, 0, 0] = np.nan
    read = statistics_with(tmp_path, odd)
    assert [one is None for one in read] == [False] * 39 + [True]


def test_large_and_small_latents_are_weighted_by_their_cells():
    """Of a large latent 64 cells are kept; mean, deviation and range are those of all cells."""
    of_rows = [np.random.default_rng(seed).normal(seed, 1 + seed, (2, side, side)) for seed, side in enumerate((4, 32))]
    location = RowLocation(DataFile("x", 1, "1"), 0, 0)
    rows = [row_statistics(location, {"key": "k", "samples": one}, metadata()) for one in of_rows]
    assert [one.sample.shape for one in rows] == [(2, 16), (2, 64)]
    assert np.isin(rows[1].sample[0], of_rows[1][0].astype(np.float32)).all()
    values = np.concatenate([one.reshape(2, -1) for one in of_rows], axis=1)
    channels = channel_statistics(rows)
    assert np.allclose(channels.mean, values.mean(axis=1)) and np.allclose(channels.std, values.std(axis=1))
    assert (channels.maximum == values.max(axis=1)).all()
