"""The sample of an output's rows: all of a small output, and a limited part of a large one."""

import numpy as np

from inpaint_encode.tools.inspect import row_sample
from inpaint_encode.tools.inspect.row_sample import RowSample, read_row


def test_every_row_of_a_small_output_is_read_once(small):
    sample = RowSample(small, seed=3)
    columns = sample.read_plain_columns()
    assert sample.is_whole and sample.rows == len(columns.locations) == 60
    keys = sample.map_rows(sample.draw(1_000), ["key"], lambda _, row: row["key"])
    assert sorted(keys) == [f"{file}-{at:02d}" for file in range(5) for at in range(12)]


def test_plain_columns_belong_to_their_locations(small):
    columns = RowSample(small, seed=1).read_plain_columns()
    for at in (0, 17, 59):
        found = read_row(small, columns.locations[at])
        assert found["mask_coverage"] == columns.coverage[at]
        assert found["noise_mask"].shape == (1, columns.height[at], columns.width[at]) == (1, 16, 24)
    assert set(columns.precision) == {"float32"} and columns.tiled == 0


def test_the_seed_determines_the_sample(large, monkeypatch):
    monkeypatch.setattr(row_sample, "MAX_FILES", 5)
    samples = [RowSample(large, seed).draw(20) for seed in (1, 1, 2)]
    drawn = [[(group.file, group.number, rows) for group, rows in one.items()] for one in samples]
    assert drawn[0] == drawn[1] != drawn[2]


def test_limits_are_kept(large, monkeypatch):
    monkeypatch.setattr(row_sample, "MAX_FILES", 10)
    sample = RowSample(large, 0)
    assert (len(sample.files), len(sample.output.files), sample.rows) == (10, 2_000, 80)
    assert sum(map(len, sample.draw(20).values())) == 20
    monkeypatch.setattr(row_sample, "MAX_ROWS", 30)
    assert len(sample.read_plain_columns().locations) == 32  # whole groups of eight
    monkeypatch.setattr(row_sample, "MAX_LATENT_BYTES", 1)
    assert sum(map(len, sample.draw(1_000).values())) == 8  # one group, whatever its bytes


def test_every_file_is_equally_likely(small, monkeypatch):
    monkeypatch.setattr(row_sample, "MAX_FILES", 1)
    seen = [RowSample(small, seed).files[0].path for seed in range(200)]
    counts = np.array([seen.count(file.path) for file in small.files])
    assert (counts > 20).all()
