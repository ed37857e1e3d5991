"""Sampling errors against many samples of known populations."""

import math

import numpy as np
import pytest

from inpaint_encode.tools.plan.sampling import Estimate, draw, mean, share, total


class TestIntervals:
    """About 95% of many samples have a 95% interval that contains the population's number."""

    POPULATION, SAMPLED, TIMES = 1_000, 120, 500

    def coverage(self, population, estimate_from) -> float:
        rng = np.random.default_rng(0)
        estimates = [estimate_from(rng.choice(population, self.SAMPLED, replace=False)) for _ in range(self.TIMES)]
        truth = estimate_from(population).value
        return float(np.mean([abs(one.value - truth) <= one.half_width for one in estimates]))

    @pytest.mark.parametrize("true_share", [0.02, 0.3, 0.95])
    def test_shares(self, true_share):
        population = np.arange(self.POPULATION) < true_share * self.POPULATION
        covered = self.coverage(population, lambda sample: share(int(sample.sum()), len(sample), self.POPULATION))
        assert covered >= 0.92
        not_sampled = 1 - self.SAMPLED / self.POPULATION
        known = 1.96 * math.sqrt(true_share * (1 - true_share) / self.SAMPLED * not_sampled)
        width = share(round(true_share * self.SAMPLED), self.SAMPLED, self.POPULATION).half_width
        assert width == pytest.approx(known, rel=0.1 if true_share == 0.3 else 0.8)

    def test_means(self):
        population = np.random.default_rng(1).lognormal(size=self.POPULATION)
        assert 0.9 <= self.coverage(population, lambda sample: mean(list(sample), len(sample), self.POPULATION)) <= 0.99

    def test_totals(self):
        population = np.random.default_rng(2).uniform(size=self.POPULATION) * (np.arange(self.POPULATION) % 10 > 0)
        assert 0.92 <= self.coverage(population, lambda sample: total(list(sample), self.POPULATION)) <= 0.98

    def test_a_share_of_none_has_an_error_unless_all_were_sampled(self):
        assert share(0, 256, 10**9).half_width == pytest.approx(0.0148, abs=1e-4)
        assert share(0, 256, 256).half_width == 0


def test_a_sample_of_one_has_no_known_error():
    assert mean([3.0], 1, 10) == Estimate(3.0, None)
    assert mean([3.0], 1, 10).scaled(2) == total([0.6], 10) == Estimate(6.0, None)
    assert mean([3.0], 1, 1) == Estimate(3.0, 0.0)


def test_equal_values_have_no_error():
    assert mean([0.004096] * 257, 257, 300) == Estimate(0.004096, 0.0)


def test_every_position_is_drawn_equally_often():
    counts = np.bincount([position for seed in range(3_000) for position in draw(10, 3, seed)])
    assert np.abs(counts - 900).max() < 5 * math.sqrt(3_000 * 0.3 * 0.7)
    assert draw(4, 9, 0) == [0, 1, 2, 3]
