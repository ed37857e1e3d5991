"""The command ``info``: what is said of an output in every state, from its metadata alone and in few requests."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inpaint_encode.core.chunk import Reject
from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.output.lease import hold
from inpaint_encode.output.report import RunStats, write_report
from inpaint_encode.output.resume import job_record, open_output, row_metadata
from inpaint_encode.output.rows import rejects_table
from inpaint_encode.schema import PAIRS, RECEIPT, data_schema
from inpaint_encode.sources import FoundPairs
from inpaint_encode.stores import s3 as clients
from inpaint_encode.stores import storage
from inpaint_encode.stores.s3 import forget_clients
from inpaint_encode.tools.inspect import info
from inpaint_encode.tools.inspect.info import about
from tests.buckets import point_clients_at
from tests.metadata import VAE
from tests.proxy import FaultyProxy
from tests.rows import encoded_pair, groups_of

SIDES, CHUNK = (64, 80), 3


class Written:
    """An output as a job writes it, chunk by chunk, without a VAE: constants for latents."""

    def __init__(self, output, make_job, **options):
        self.output = str(output)
        job = make_job("in/images", "in/masks", self.output, **options)
        self.metadata = row_metadata(job.rows, job.decoding, VAE)
        self.record = job_record(job, self.metadata)
        self.lease = hold(f"{self.output}/_lease.json", lambda _: None)
        self.state, _ = open_output(self.output, self.record, overwrite=False, token=self.lease.token)
        self.committed, self.kept = [], 0

    def plan(self, pairs, generation=0):
        about = {"chunk": 0, "image_uri": "i", "mask_uri": "m", "mask_index": 0, "encode": True}
        keys = ({**about, "key": f"k{number:03}", "image_version": "", "mask_version": ""} for number in range(pairs))
        self.part = self.state.write_plan(generation, pa.Table.from_pylist(list(keys), PAIRS))[0]

    def chunk(self, number, rejected=0):
        """Commit a chunk of `CHUNK` pairs, of which some are rejects."""
        work = {"chunk": number, "generation": 0, "part": self.part, "keep": False}
        pairs = [self.row(f"k{number * CHUNK + index:03}") for index in range(CHUNK)]
        rejects = rejects_table([Reject(row.pair, "decode.truncated", "cut") for row in pairs[:rejected]])
        groups = groups_of(pairs[rejected:], self.metadata)
        self.committed.append((work, self.state.commit(work, *groups, rejects, check=lambda: None)))

    def row(self, key):
        height, width = SIDES
        samples = np.ones((4, height // 8, width // 8), self.metadata.samples_dtype)
        tensors = {"original_samples": samples, "latent_mask": samples[:1]}
        return encoded_pair(key, samples, np.zeros(SIDES, np.uint8), image_uri="i", mask_uri="m", **tensors)

    def keep_receipts(self):
        """As a run does every half a minute; the chunks since the last time."""
        receipts = []
        for work, one in self.committed[self.kept :]:
            told = {"errors": list(one.errors.items()), "counters": [], "fatal": None}
            counts = {name: getattr(one, name) for name in ("encoded", "rejected", "data_bytes", "version")}
            receipts.append({**work, **counts, "rejects_version": one.rejects_version, **told})
        self.state.write_receipts("1", self.kept, [{k: r[k] for k in RECEIPT.names} for r in receipts])
        self.kept = len(self.committed)

    def finish(self, pairs):
        whole = RunStats.of(committed for _, committed in self.committed)
        found = FoundPairs(pa.table({}), *[pa.chunked_array([[]], pa.string())] * 2, 0)
        write_report(f"{self.output}/_report.json", {}, pairs, found, whole, RunStats())

    def end(self):
        storage.delete(f"{self.output}/_lease.json")


@pytest.fixture
def written(tmp_path, make_job):
    return Written(tmp_path / "out", make_job, also_original=True, latent_mask="comfyui", samples_dtype="float16")


def test_an_output_in_all_its_states(written):
    with pytest.raises(JobFailed, match=r"was begun 20.* and has no rows yet"):
        about(written.output)
    written.plan(7)
    written.chunk(0)
    counts = about(written.output).counts
    assert counts.state.startswith("in progress")
    assert (counts.planned, counts.encoded, counts.rejected, counts.files) == (7, None, None, 1)
    written.chunk(1, rejected=2)
    written.keep_receipts()
    counts = about(written.output).counts
    assert (counts.finished, counts.planned, counts.encoded, counts.rejected, counts.files) == (False, 7, 4, 2, 2)
    written.end()
    assert about(written.output).counts.state == "not finished, and no run is writing to it"
    written.finish(6)
    found = about(written.output)
    assert found.counts.state.startswith("finished 20")
    assert (found.counts.planned, found.counts.encoded, found.counts.rejected) == (6, 4, 2)
    assert found.rejected_by_error == {"decode.truncated": 2}
    assert found.counts.bytes == sum(one.data_bytes for _, one in written.committed)
    written.chunk(2)
    counts = about(written.output).counts
    assert "; _report.json is of the run that finished 20" in counts.state
    assert (counts.finished, counts.encoded, counts.files) == (False, None, 3)


def test_a_plan_of_two_generations_does_not_tell_how_many_pairs_there_are(written):
    written.plan(7)
    written.chunk(0)
    assert about(written.output).counts.planned == 7
    written.plan(3, generation=1)
    assert about(written.output).counts.planned is None


def test_rows_are_not_counted_by_more_receipts_than_are_cheap(written, monkeypatch):
    written.plan(6)
    for number in (0, 1):
        written.chunk(number)
        written.keep_receipts()
    monkeypatch.setattr(info, "RECEIPTS", 2)
    assert about(written.output).counts.encoded == 6
    monkeypatch.setattr(info, "RECEIPTS", 1)
    assert about(written.output).counts.encoded is None


def test_columns_are_told_in_words(written):
    written.plan(3)
    written.chunk(0)
    columns = {column.name: column for column in about(written.output).columns}
    latent = ("tensor of float16", "[4, h, w], each 1/8 of the crop's sides")
    assert {(columns[name].type, columns[name].shape) for name in ("samples", "original_samples")} == {latent}
    assert (columns["noise_mask"].type, columns["noise_mask"].shape[:9]) == ("tensor of uint8", "[1, H, W]")
    assert columns["latent_mask"].shape == "[1, h, w], as samples"
    assert (columns["crop_top"].type, columns["crop_top"].shape) == ("int32", "")
    size = written.committed[0][1].data_bytes
    total = sum(column.bytes for column in columns.values())
    assert 0 < total < size  # the rest is the footer


@pytest.mark.parametrize(
    ("options", "name", "type_and_shape"),
    [
        ({"posterior": "moments"}, "samples", ("tensor of float32", "[8, h, w], each 1/8 of the crop's sides")),
        (
            {"mask_encoding": "packed"},
            "noise_mask",
            ("bits, 8 pixels a byte", "[1, H, W], the crop's height and width"),
        ),
    ],
)
def test_other_columns(options, name, type_and_shape, make_job, tmp_path):
    job = make_job("i", "m", str(tmp_path), **options)
    metadata = row_metadata(job.rows, job.decoding, VAE)
    schema = data_schema(metadata)
    assert info._type_and_shape(schema.field(name), metadata) == type_and_shape


def test_what_is_printed(written, shell):
    written.plan(3)
    written.chunk(0, rejected=1)
    written.finish(3)
    written.end()
    done = shell("info", written.output)
    lines = {" ".join(line.split()) for line in done.stdout.splitlines()}
    assert done.returncode == 0, done.stderr
    assert {"pairs planned 3", "rows 2", "rejected 1 (1 decode.truncated)", "files 1, 2 rows in the first"} <= lines
    assert {"vae_class AutoencoderKL", "weights_sha256 000000000000", "scaling_factor 0.18215"} <= lines
    assert {"also_original true", "latent_mask comfyui", "grow_mask_by 6 default", "tile none default"} <= lines
    assert {"settings, of contract 1", "images " + written.record["source"]["images"]} <= lines
    assert any(line.startswith("samples tensor of float16 [4, h, w]") for line in lines)
    told = json.loads(shell("info", written.output, "--as-json").stdout)
    assert told == about(written.output).as_dict() | {"columns": told["columns"]}
    assert told["columns"][1]["name"] == "samples"


def test_names_are_printed_as_they_are(written, shell):
    written.plan(3)
    written.chunk(0)
    record = json.loads(storage.read(f"{written.output}/_job.json").data)
    record["source"] = {"images": "/data[v1]/images", "mask_pattern": "{stem}[/x].png"}
    storage.write(f"{written.output}/_job.json", json.dumps(record).encode())
    lines = {" ".join(line.split()) for line in shell("info", written.output).stdout.splitlines()}
    assert {"images /data[v1]/images", "mask_pattern {stem}[/x].png"} <= lines


def test_where_no_output_is(tmp_path, shell):
    done = shell("info", tmp_path)
    assert (done.returncode, "holds no rows; name the folder" in done.stderr) == (2, True)
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    done = shell("info", tmp_path)
    assert (done.returncode, "x.parquet is no data file of encode" in done.stderr) == (2, True)
    with pytest.raises(UsageError, match="can be written"):
        about("gs://bucket/out")


def test_neither_torch_nor_ray_is_imported(written):
    written.plan(3)
    written.chunk(0)
    code = (
        "import sys; from inpaint_encode.cli import main; main(['info', sys.argv[1]]); "
        "print(*{'torch', 'ray', 'diffusers'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, written.output], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.strip()) == (0, "")


@pytest.mark.parametrize("copies", [1, 1_100])
def test_requests_grow_with_pages_of_the_listing_alone(s3, make_job, copies, monkeypatch):
    """A page has 1,000 objects; whatever the number of files, one footer is read."""
    written = Written(s3.uri(f"info-{copies}"), make_job)
    written.plan(3)
    written.chunk(0)
    written.keep_receipts()
    many(written, copies)
    with FaultyProxy(s3) as proxy, monkeypatch.context() as patch:
        point_clients_at(proxy.environment, patch)
        found = about(written.output)
    forget_clients()
    assert found.counts.files == copies
    assert found.counts.encoded == (CHUNK if copies == 1 else None)
    assert proxy.counts["requests"] == 9 + copies // 1_000


def many(written, copies):
    """Copies of the chunk's file, under the names of other chunks."""
    bucket = written.output.removeprefix("s3://").partition("/")[0]
    data = storage.read(written.state.data_uri(0)).data
    paths = [written.state.data_uri(number).partition(f"{bucket}/")[2] for number in range(1, copies)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: obstore.put(clients.connect(bucket), path, data), paths))
