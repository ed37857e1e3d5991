"""An output that was begun before options existed goes on with their defaults, and with nothing else."""

import json
from dataclasses import replace

import pyarrow as pa
import pytest

from inpaint_encode.errors import UsageError
from inpaint_encode.output import planner
from inpaint_encode.output.lease import acquire_lease
from inpaint_encode.output.resume import Remaining, job_record, open_output, row_metadata
from inpaint_encode.output.state import OutputState
from inpaint_encode.settings import Decoding
from inpaint_encode.sources import LeftOut, open_source
from inpaint_encode.sources import pairs as source_pairs
from inpaint_encode.stores import storage
from tests.indexed import IndexedRun
from tests.metadata import VAE
from tests.plans import JOB, write_lines
from tests.unit.sources.make_sources import write_tar

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


@pytest.mark.parametrize("unit_pairs", [4, 8, 1000])
@pytest.mark.parametrize(("limit", "chunks"), [(0, 3), (1, 1), (4, 1), (5, 2), (11, 3), (99, 3)])
def test_a_limit_is_reached_by_whole_chunks(tmp_path, make_job, monkeypatch, limit, chunks, unit_pairs):
    """Eleven pairs in chunks of four, whether they are one unit or three; what is not needed is not planned."""
    for module in (source_pairs, planner):
        monkeypatch.setattr(module, "BATCH_PAIRS", unit_pairs)
    path = write_lines(tmp_path / "list.jsonl", ({"image": f"{n:02}.jpg", "mask": f"{n:02}.png"} for n in range(11)))
    job = make_job("", "", tmp_path / "out", pairs=path, chunk_rows=4, limit=limit)
    state = OutputState(str(tmp_path / "out"), JOB, "0" * 32)
    left = Remaining(state, state.inventory(), job, open_source(job.source))
    work = pa.concat_tables(left.work())
    assert work["chunk"].to_pylist() == sorted(work["chunk"].to_pylist())
    assert work["pairs"].to_pylist() == [4, 4, 3][:chunks]
    if limit == 1 and unit_pairs == 4:
        assert len(left.log.units) == 1
        assert not left.planner.complete


def test_files_left_out_of_a_tar_that_was_replaced_count_once(tmp_path, make_job):
    members = {"0.png": b"0", "0.mask.png": b"0", "notes.bin": b""}
    path = str(tmp_path / "pairs.tar")
    for more in ({}, {"1.png": b"1", "1.mask.png": b"1"}):
        write_tar(path, members | more)
        IndexedRun(str(tmp_path / "out"), make_job, path).end()
    run = IndexedRun(str(tmp_path / "out"), make_job, path).end()
    assert run.left.planner.unchanged == {path}
    assert run.left.left_out(LeftOut()).ignored_files == 1
