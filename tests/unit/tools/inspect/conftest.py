"""A small and a large output, written without a VAE."""

import os

import pytest

from inpaint_encode.reader import Output
from tests.fabricated import JOB, latents, row, write_output


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Five files of 12 rows, with the file and row number in the key and different masks."""
    files = [
        [row(f"{file}-{at:02d}", latent, covered=10 * file + at) for at, latent in enumerate(latents(12, seed=file))]
        for file in range(5)
    ]
    return Output.open(str(write_output(tmp_path_factory.mktemp("small") / "out", files)))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """2,000 files of 8 rows; all but the first are links to it."""
    folder = write_output(
        tmp_path_factory.mktemp("large") / "out", [[row(f"{at}", one) for at, one in enumerate(latents(8))]]
    )
    for chunk in range(1, 2_000):
        os.link(folder / f"{JOB}-00000000.parquet", folder / f"{JOB}-{chunk:08d}.parquet")
    return Output.open(str(folder))
