"""Rates over time in the report of a run."""

import numpy as np

from inpaint_encode.output.report import MAX_SAMPLES, RunStats


class TestOverTime:
    def test_a_run_of_any_length_keeps_a_limited_number_of_samples(self):
        stats = RunStats()
        for chunk in range(10_000):
            stats.encoded += 7
            stats._sample(float(chunk))
            assert len(stats.samples) <= MAX_SAMPLES
        seconds, decided = (np.array(values) for values in zip(*stats.samples, strict=True))
        assert len(seconds) >= MAX_SAMPLES / 4
        assert (decided == 7 * (seconds + 1)).all() and (np.diff(seconds) > 0).all()
        assert np.diff(seconds).max() <= 2 * np.diff(seconds)[1:].min() and seconds[-1] > 9_800

    def test_the_last_sample_is_the_end(self):
        stats = RunStats(encoded=5)
        assert stats.over_time[-1][1] == 5
        stats._sample(1.0)
        assert stats.over_time == [(1.0, 5)]
        assert RunStats().over_time == []
