"""Damaged and hostile notes: one sentence that names the file and says what to do, and a way out."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.json_files import MAX_DEPTH, parse_json
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.output import lease as leases
from inpaint_encode.output import notes
from inpaint_encode.output.index_files import IndexNote, read_note
from inpaint_encode.output.lease import acquire_lease
from inpaint_encode.output.notes import parse_chunk_footer, parse_job, parse_report
from inpaint_encode.output.plan_log import Marker, parse_marker
from inpaint_encode.output.resume import job_record, open_output
from inpaint_encode.reader import Output
from inpaint_encode.tools.inspect.summary import read_report
from tests.metadata import row_metadata

HOSTILE = {
    "empty": b"",
    "cut": b'{"job": "0a1b2c3d", "ro',
    "an array": b"[]",
    "a number": b"7",
    "null": b"null",
    "no fields": b"{}",
    "nested deeply": b'{"job": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested without end": b"[" * 1_000_000,
    "not a number": b'{"job": NaN, "pairs": NaN, "pid": Infinity, "job": 1e999}',
    "not UTF-8": b'{"job": "\xff\xfe"}',
    "half a character": b'{"job": "\\ud800", "finished": "\\ud800"}',
    "UTF-16": '{"job": "0a1b2c3d"}'.encode("utf-16"),
    "a long number": b'{"job": ' + b"9" * 5_000 + b"}",
    "zero bytes": bytes(1_000),
    "other types": json.dumps(
        {"job": 5, "rows": [], "replaces": {}, "layout": "2", "pairs": "12", "files": [], "token": 3, "format": {}}
    ).encode(),
}


@pytest.fixture(params=HOSTILE)
def data(request) -> bytes:
    return HOSTILE[request.param]


ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda value: st.lists(value) | st.dictionaries(st.text(), value),
    max_leaves=20,
)
PARSERS = [parse_job, parse_report, IndexNote.parse, leases._Holder.parse]


@pytest.mark.parametrize("parse", PARSERS, ids=lambda parse: parse.__qualname__)
def test_every_damage_is_a_value_error(parse, data):
    with pytest.raises(ValueError) as raised:
        parse(data)
    assert 0 < len(str(raised.value)) < 200
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("parse", PARSERS, ids=lambda parse: parse.__qualname__)
@settings(max_examples=40)
@given(st.binary() | ANY_JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_parsed_or_a_value_error(parse, data):
    with pytest.raises(ValueError):
        parse(data)


def test_a_marker_that_is_damaged_is_named(data):
    with pytest.raises(JobFailed, match=r"^the plan of this output is damaged: x\.json .* verify --repair`$"):
        parse_marker("x.json", data)


@pytest.mark.parametrize(
    "changes",
    [
        {"parts": [("../../x.parquet", "0" * 64, 5)]},
        {"parts": [("_plan/0a1b2c3d-000007.0-0a1b2c3d-00000.parquet", "0" * 64, 5)]},
        {"chunks": [(0, 5, "h", 3, 0, "")]},
        {"chunks": [(0, -5, "h", 0, 0, "")]},
        {"slices": [("list.csv", "v", 0, 2**70, True)]},
    ],
)
def test_a_marker_with_a_checksum_and_other_contents_than_a_run_writes_is_damaged(changes):
    """Anyone can compute the checksum."""
    body = json.dumps(Marker.without_pairs(3, 0, "").model_dump() | changes, separators=(",", ":")).encode()
    data = body[:-1] + b',"sha256":"' + hashlib.sha256(body).hexdigest().encode() + b'"}'
    with pytest.raises(JobFailed, match="is damaged: x cannot be read"):
        parse_marker("x", data)


@pytest.mark.parametrize("key", [notes.CHUNK_KEY, notes.FOOTER_KEY])
def test_a_footer_that_is_damaged_is_a_value_error(key, data):
    parse = parse_chunk_footer if key == notes.CHUNK_KEY else notes.parse_metadata_footer
    for metadata in (None, {}, {key: data}):
        with pytest.raises(ValueError, match=r"it |its |footer|metadata"):
            parse(metadata)


FOOTER = {"chunk": "000000-00001", "revision": 0, "hash": "h", "rejected": [{"key": "a", "error": "image.size"}]}


@pytest.mark.parametrize(
    "changes",
    [
        {"rejected": [1]},
        {"rejected": [{"key": "a"}]},
        {"rejected": [{"key": "a", "error": 5}]},
        {"rejected": {}},
        {"chunk": "../../x"},
        {"revision": -1},
        {"revision": 2**40},
        {"revision": "0"},
        {"hash": None},
    ],
)
def test_a_footer_with_wrong_types_is_a_value_error(changes):
    assert parse_chunk_footer({notes.CHUNK_KEY: json.dumps(FOOTER).encode()}).revision == 0
    with pytest.raises(ValueError, match="footer"):
        parse_chunk_footer({notes.CHUNK_KEY: json.dumps(FOOTER | changes).encode()})


METADATA = row_metadata().to_dict()


@pytest.mark.parametrize(
    "changes",
    [
        {"grow_mask_by": "6"},
        {"grow_mask_by": 10**6},
        {"vae_scale_factor": 0},
        {"latent_channels": -4},
        {"samples_dtype": "object"},
        {"latents_mean": "0.5"},
        {"scaled": 1},
        {"resolution": "1x" + "9" * 9},
        {"versions": ["torch"]},
        {"contract": 1.5},
    ],
)
def test_metadata_with_a_wrong_value_is_a_value_error(changes):
    assert RowMetadata.from_dict(METADATA).to_dict() == METADATA
    with pytest.raises(ValueError, match=next(iter(changes))):
        RowMetadata.from_dict(METADATA | changes)


@given(ANY_JSON)
def test_honest_json_comes_back(value):
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(json.dumps(value, ensure_ascii=False, indent=2).encode()) == value


@pytest.mark.parametrize("text", ['"]["', '"\\"["', '"\\\\", [', "[" * MAX_DEPTH])
def test_brackets_in_strings_are_no_nesting(text):
    whole = json.dumps([text] * 50).encode()
    assert parse_json(whole) == [text] * 50


def test_few_bytes_do_not_become_much_memory():
    with pytest.raises(ValueError, match="more than 4,000,000 values"):
        parse_json(b"[" + b"[]," * 5_000_000 + b"[]]")


def test_a_huge_note_is_not_read(tmp_path):
    """A sparse file of 1 TB."""
    for name in ("_job.json", "_report.json", "_index.json"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(10**12)
    output = Output(str(tmp_path), ())
    for name in ("job", "report"):
        with pytest.raises(JobFailed, match=f"_{name}.json is damaged .it has 1,000,000,000,000 bytes"):
            getattr(output, name)
    assert read_note(str(tmp_path)) is None


class TestLease:
    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch) -> None:
        monkeypatch.setattr(leases, "LEASE_S", 0.6)

    @pytest.mark.parametrize("name", ["empty", "nested deeply", "other types"])
    def test_a_damaged_lease_is_cold_after_its_wait(self, tmp_path, name):
        lease, lines = tmp_path / "_lease.json", []
        lease.write_bytes(HOSTILE[name])
        with acquire_lease(str(lease), lines.append) as held:
            assert [line for line in lines if "waiting up to" in line] == lines[:1]
            assert json.loads(lease.read_text())["token"] == held.token
        assert not lease.exists()

    def test_a_damaged_lease_ends_the_run_that_held_it(self, tmp_path, data):
        with acquire_lease(str(tmp_path / "_lease.json"), print) as held:
            (tmp_path / "_lease.json").write_bytes(data)
            with pytest.raises(JobFailed, match="another run has taken over this output"):
                leases.check_lease_token(str(tmp_path / "_lease.json"), held.token)


class TestJobFile:
    def record(self, job) -> dict:
        return job_record(job, row_metadata())

    @pytest.fixture
    def job(self, tmp_path, make_job):
        return make_job(tmp_path / "images", tmp_path / "masks", str(tmp_path / "out"))

    @pytest.fixture
    def begin(self, job):
        def run(*, overwrite=False):
            with acquire_lease(f"{job.output.output}/_lease.json", print) as lease:
                return open_output(job.output.output, self.record(job), overwrite=overwrite, token=lease.token)

        return run

    @pytest.fixture
    def files(self, job, begin) -> list[Path]:
        """Begin an output, and write a marker and a data file of it; return the two."""
        state, _ = begin()
        paths = [Path(state.uri(f"_plan/{state.job}-000000.0.json")), Path(state.data_uri("000000-00000"))]
        for path in paths:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"x")
        return paths

    def test_a_damaged_one_is_named(self, job, begin, files, data):
        Path(job.output.output, "_job.json").write_bytes(data)
        with pytest.raises(UsageError, match=r"_job\.json is damaged .* use --overwrite to start again$"):
            begin()
        assert all(path.exists() for path in files)

    def test_the_copy_in_the_report_restores_it(self, job, begin, files, data):
        """As the error advises; `write_report` writes it without replaced jobs and the date."""
        path = Path(job.output.output, "_job.json")
        copy = {"job": parse_job(path.read_bytes())["job"], **self.record(job)}
        path.write_bytes(data)
        with pytest.raises(UsageError, match=r"such as the value of job in _report\.json"):
            begin()
        path.write_text(json.dumps(copy))
        assert begin()[0].job == copy["job"]

    def test_overwrite_is_a_way_out(self, job, begin, files, data):
        before = Path(job.output.output, "_job.json")
        before.write_bytes(data)
        state, _ = begin(overwrite=True)
        assert not any(path.exists() for path in files)
        assert parse_job(before.read_bytes())["job"] == state.job not in files[0].name
        assert begin()[0].job == state.job

    def test_overwrite_is_a_way_out_if_it_is_missing(self, job, begin, files):
        Path(job.output.output, "_job.json").unlink()
        with pytest.raises(UsageError, match="which this job did not write"):
            begin()
        begin(overwrite=True)
        assert not any(path.exists() for path in files)

    def test_overwrite_deletes_no_data_file_of_a_job_without_a_plan(self, job, begin, files):
        """Nothing says that the file belongs to this output."""
        foreign = Path(job.output.output, "deadbeef-000000-00000.parquet")
        foreign.write_bytes(b"x")
        Path(job.output.output, "_job.json").write_bytes(b"{")
        with pytest.raises(UsageError, match=r"deadbeef-000000-00000\.parquet, which this job did not write"):
            begin(overwrite=True)
        assert foreign.exists()

    @pytest.mark.parametrize("changes", [{"job": "../../x"}, {"replaces": ["../x"]}, {"replaces": "deadbeef"}])
    def test_names_of_jobs_are_checked(self, job, begin, files, changes):
        path = Path(job.output.output, "_job.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        with pytest.raises(UsageError, match="is damaged"):
            begin()


def test_a_damaged_report_is_named(tmp_path, data):
    (tmp_path / "_report.json").write_bytes(data)
    with pytest.raises(JobFailed, match=r"_report\.json is damaged .* run the same encode command again"):
        read_report(str(tmp_path))


REPORT = {
    **dict.fromkeys(("pairs", "encoded", "rejected", "files", "data_bytes"), 1),
    "finished": "2026-11-28T12:40:29+00:00",
    "this_run": {"encoded": 1, "rejected": 0, "seconds": 2.0, "pairs_per_second": 0.5, "counters": {}},
}


@pytest.mark.parametrize(
    "changes",
    [
        {"finished": "yesterday"},
        {"finished": "\x1b[2J" * 90},
        {"encoded": -1},
        {"pairs": True},
        {"rejected_by_error": {"image.size": "many"}},
        {"this_run": {}},
        {"this_run": {**REPORT["this_run"], "seconds": -1}},
        {"this_run": {**REPORT["this_run"], "counters": {"batches": None}}},
        {"this_run": {**REPORT["this_run"], "decided_over_time": [[2, 1], [1, 2]]}},
        {"this_run": {**REPORT["this_run"], "masks": {"warning": 5}}},
        {"job": {"rows": 5}},
        {"unpaired_image_uris": [5]},
    ],
)
def test_a_report_with_wrong_values_is_a_value_error(changes):
    assert parse_report(json.dumps(REPORT).encode())["this_run"]["masks"] == {"warning": None}
    with pytest.raises(ValueError) as raised:
        parse_report(json.dumps(REPORT | changes).encode())
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("name", ["_job.json", "_report.json"])
def test_files_of_version_0_1_are_read(name):
    data = (Path(__file__).parents[2] / "data" / "output_0.1" / name).read_bytes()
    assert (parse_job if name == "_job.json" else parse_report)(data)


@pytest.mark.parametrize("changes", [{"created": "\n"}, {"access": {"endpoint_url": 5}}, {"versions": {"a": 1}}])
def test_a_job_file_with_wrong_values_is_a_value_error(changes):
    job = {"job": "0a1b2c3d", "rows": METADATA, "access": {"a_later_option": 1}}
    assert parse_job(json.dumps(job).encode())["access"] == {}
    with pytest.raises(ValueError, match=r"no date|is 5|is 1"):
        parse_job(json.dumps(job | changes).encode())
