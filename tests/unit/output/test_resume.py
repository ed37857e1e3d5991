"""An output that was begun before options existed goes on with their defaults, and with nothing else."""

import json

import pytest

from inpaint_encode.errors import UsageError
from inpaint_encode.output.lease import hold
from inpaint_encode.output.resume import job_record, open_output
from inpaint_encode.settings import Decoding
from inpaint_encode.stores import storage
from inpaint_encode.vae import VaeFacts

FACTS = VaeFacts(
    vae_class="AutoencoderKL",
    vae_source="a/vae",
    weights_sha256="0" * 64,
    config_sha256="1" * 64,
    ratio=8,
    crop_multiple=8,
    latent_channels=4,
    latent_form="unscaled",
    scaling_factor=0.18215,
    shift_factor=None,
    latents_mean=None,
    latents_std=None,
).as_dict()
FIRST = {
    *("contract", "grow_mask_by", "dtype", "samples_dtype", "posterior", "mask_encoding", "deterministic"),
    *Decoding().recorded(),
    *("vae_class", "weights_sha256", "ratio", "latent_channels", "scaling_factor"),
}
"""What the oldest outputs that are still gone on with say of their rows; what came later has a value for before."""


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"tile": False}, ""),
        ({}, "tile: False there, None here"),
        ({"tile": False, "scaled": True}, "scaled: False there, True here"),
        ({"tile": False, "scaled": True}, "latent_form: unscaled there, scaled here"),
        ({"tile": False, "posterior": "sample"}, "posterior: mean there, sample here"),
    ],
)
def test_rows_of_an_older_output_are_of_the_defaults_and_never_tiled(tmp_path, make_job, options, refused):
    def make(**given):
        return job_record(make_job(tmp_path / "a", tmp_path / "b", tmp_path / "out", **given), FACTS)

    output = str(tmp_path / "out")
    older = make(tile=False)
    older["rows"] = {name: value for name, value in older["rows"].items() if name in FIRST}
    storage.write(f"{output}/_job.json", json.dumps({"job": "a1b2c3d4", "replaces": [], **older}).encode())
    with hold(f"{output}/_lease.json", lambda _: None) as lease:
        if not refused:
            assert open_output(output, make(**options), overwrite=False, token=lease.token)[0].job == "a1b2c3d4"
        else:
            with pytest.raises(UsageError, match=refused):
                open_output(output, make(**options), overwrite=False, token=lease.token)


def test_another_configuration_is_another_vae(tmp_path, make_job):
    job = make_job(tmp_path / "a", tmp_path / "b", tmp_path / "out")
    output = str(tmp_path / "out")
    with hold(f"{output}/_lease.json", lambda _: None) as lease:
        open_output(output, job_record(job, FACTS), overwrite=False, token=lease.token)
        other = job_record(job, FACTS | {"config_sha256": "2" * 64})
        with pytest.raises(UsageError, match=r"config_sha256: 1+ there, 2+ here"):
            open_output(output, other, overwrite=False, token=lease.token)
