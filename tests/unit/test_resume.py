"""An output that was begun before options existed goes on with their defaults, and with nothing else."""

import json

import pytest

from inpaint_encode import storage
from inpaint_encode.errors import UsageError
from inpaint_encode.lease import hold
from inpaint_encode.resume import job_record, open_output

FACTS = {
    "vae_class": "AutoencoderKL",
    "vae_source": "a/vae",
    "weights_sha256": "0" * 64,
    "ratio": 8,
    "crop_multiple": 8,
    "latent_channels": 4,
    "latent_form": "unscaled",
    "scaling_factor": 0.18215,
}
NEWER = (
    "posterior_seed",
    "scaled",
    "also_original",
    "latent_mask",
    "tile",
    "tile_size",
    "crop_multiple",
    "latent_form",
)


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"tile": False}, ""),
        ({}, "tile: False there, None here"),
        ({"tile": False, "scaled": True}, "scaled: False there, True here"),
        ({"tile": False, "posterior": "sample"}, "posterior: mean there, sample here"),
    ],
)
def test_rows_of_an_older_output_are_of_the_defaults_and_never_tiled(tmp_path, make_job, options, refused):
    def make(**given):
        return job_record(make_job(tmp_path / "a", tmp_path / "b", tmp_path / "out", **given), FACTS)

    output = str(tmp_path / "out")
    older = make(tile=False)
    for name in NEWER:
        del older["rows"][name]
    storage.write(f"{output}/_job.json", json.dumps({"job": "a1b2c3d4", "replaces": [], **older}).encode())
    with hold(f"{output}/_lease.json", lambda _: None) as lease:
        if not refused:
            assert open_output(output, make(**options), overwrite=False, token=lease.token)[0].job == "a1b2c3d4"
        else:
            with pytest.raises(UsageError, match=refused):
                open_output(output, make(**options), overwrite=False, token=lease.token)
