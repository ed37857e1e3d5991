"""An output that was begun before options existed goes on with their defaults, and with nothing else."""

import json
from dataclasses import replace

import pyarrow as pa
import pytest

from inpaint_encode.errors import UsageError
from inpaint_encode.output.lease import acquire_lease
from inpaint_encode.output.resume import Remaining, job_record, open_output, row_metadata
from inpaint_encode.settings import Decoding
from inpaint_encode.stores import storage
from tests.metadata import VAE

FIRST = {
    *("contract", "grow_mask_by", "compute_dtype", "samples_dtype", "posterior", "mask_encoding", "deterministic"),
    *Decoding().recorded(),
    *("vae_class", "weights_sha256", "vae_scale_factor", "latent_channels", "scaling_factor"),
}
"""What the oldest outputs that are still gone on with say of their rows; what came later has a value for before."""

FORMER = {"vae_scale_factor": "ratio", "compute_dtype": "dtype"}


def record_of(job, **vae):
    return job_record(job, row_metadata(job.rows, job.decoding, replace(VAE, **vae)))


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"tile": False}, ""),
        ({}, "tile: False in the output, None now"),
        ({"tile": False, "scaled": True}, "scaled: False in the output, True now"),
        ({"tile": False, "scaled": True}, "latent_form: unscaled in the output, scaled now"),
        ({"tile": False, "posterior": "sample"}, "posterior: mean in the output, sample now"),
    ],
)
def test_rows_of_an_older_output_are_of_the_defaults_and_never_tiled(tmp_path, make_job, options, refused):
    def make(**given):
        return record_of(make_job(tmp_path / "a", tmp_path / "b", tmp_path / "out", **given))

    output = str(tmp_path / "out")
    older = make(tile=False)
    older["rows"] = {FORMER.get(name, name): value for name, value in older["rows"].items() if name in FIRST}
    storage.write(f"{output}/_job.json", json.dumps({"job": "a1b2c3d4", "replaces": [], **older}).encode())
    with acquire_lease(f"{output}/_lease.json", lambda _: None) as lease:
        if not refused:
            assert open_output(output, make(**options), overwrite=False, token=lease.token)[0].job == "a1b2c3d4"
        else:
            with pytest.raises(UsageError, match=refused):
                open_output(output, make(**options), overwrite=False, token=lease.token)


def test_another_configuration_is_another_vae(tmp_path, make_job):
    job = make_job(tmp_path / "a", tmp_path / "b", tmp_path / "out")
    output = str(tmp_path / "out")
    with acquire_lease(f"{output}/_lease.json", lambda _: None) as lease:
        open_output(output, record_of(job), overwrite=False, token=lease.token)
        other = record_of(job, config_sha256="2" * 64)
        with pytest.raises(UsageError, match=r"hash of the VAE's configuration: 1+ in the output, 2+ now"):
            open_output(output, other, overwrite=False, token=lease.token)


@pytest.mark.parametrize(
    ("limit", "chunks", "excluded"), [(0, 3, 0), (1, 1, 7), (4, 1, 7), (5, 2, 3), (11, 3, 0), (99, 3, 0)]
)
def test_a_limit_is_reached_by_whole_chunks(limit, chunks, excluded):
    work = pa.table({"chunk": [0, 1, 2], "pairs": [4, 4, 3]})
    limited = Remaining(work, {}, 11).limited(limit)
    assert (limited.work.num_rows, limited.excluded, limited.pairs) == (chunks, excluded, 11)
