"""Commands that read a stranger's output send no credentials, and read and load nothing that the user does not name."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from PIL import Image

from inpaint_encode.errors import UsageError
from inpaint_encode.output.own_outputs import is_own, mark_own
from inpaint_encode.output.plan import chunk_name
from inpaint_encode.output.state import OutputState
from inpaint_encode.settings import SourceReading
from inpaint_encode.sources import PairReader
from inpaint_encode.stores import gcs, retries, storage
from inpaint_encode.stores import s3 as s3_store
from inpaint_encode.stores.base import Access
from inpaint_encode.tools.recorded import check_named, source_access, suggest_sources
from inpaint_encode.tools.verify.reencode import reencode_rows
from tests.damage import change_rows
from tests.fabricated import latents, row, write_output
from tests.local import encode_here, write_pairs
from tests.recorder import record

CANARY = "CanAry5ec2e7"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": f"AKIA{CANARY}",
    "AWS_SECRET_ACCESS_KEY": f"secret-{CANARY}",
    "AWS_SESSION_TOKEN": f"session-{CANARY}",
    "HF_TOKEN": f"hf_{CANARY}",
}


def png(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def google_key() -> str:
    """Return a service account's key, with which the client signs bearer tokens by itself."""
    key = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    names = {"type": "service_account", "client_email": f"{CANARY}@x", "private_key_id": CANARY}
    return json.dumps({**names, "private_key": pem, "disable_oauth": False})


@pytest.fixture
def stranger(monkeypatch, google_key):
    """Address and requests of a stranger's server; this process has credentials for AWS, Google and the hub."""
    monkeypatch.setattr(retries, "RETRY_BUDGET_S", 0.001)
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**CREDENTIALS, "GOOGLE_SERVICE_ACCOUNT_KEY": google_key}.items():
        monkeypatch.setenv(name, value)
    s3_store.forget_clients()
    gcs.connect.cache_clear()
    with record(png(np.full((16, 24, 3), 200, np.uint8))) as server:
        yield server
    s3_store.forget_clients()
    gcs.connect.cache_clear()


def write_shared_output(folder: Path, server: str, scheme: str = "s3") -> Path:
    """Write an output whose sources and VAE are on a server that it names."""
    place = f"{scheme}://bucket/private" if scheme != "http" else f"{server}/private"
    uris = {"image_uri": f"{place}/a.png", "mask_uri": f"{place}/a-mask.png"}
    write_output(folder, [[row("pair", latents(1)[0], **uris)]])
    job = json.loads((folder / "_job.json").read_text())
    job |= {"access": {"endpoint_url": server}, "source": {"images": place, "masks": place}}
    (folder / "_job.json").write_text(json.dumps({**job, "vae_source": f"{place}/vae"}))
    return folder


SCHEMES = ["s3", "gs", "http"]


def credentials_in(requests: list[str]) -> list[str]:
    secret = ("authorization:", "x-amz-security-token", "x-amz-credential", CANARY.lower(), "cookie:")
    return [one for one in requests if any(name in one.lower() for name in secret)]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("command", ["show", "report"])
def test_a_strangers_server_gets_no_request(stranger, tmp_path, shell, command, scheme):
    server, requests = stranger
    output = write_shared_output(tmp_path / "out", server, scheme)
    page = tmp_path / "page.html"
    options = {"show": ["pair", "--picture", tmp_path / "a.png"], "report": ["--html", page]}[command]
    done = shell(command, output, *options)
    assert done.returncode == 0, done.stderr
    said = done.stdout + (page.read_text() if command == "report" else "")
    assert "its source is not fetched; if you trust this output, add --sources" in said
    assert "add --vae" in said
    assert requests == [] and CANARY not in said + done.stderr


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("command", ["show", "report"])
def test_named_sources_are_fetched_without_credentials(stranger, tmp_path, shell, command, scheme):
    server, requests = stranger
    output = write_shared_output(tmp_path / "out", server, scheme)
    place = f"{server}/private" if scheme == "http" else f"{scheme}://bucket/private"
    options = {"show": ["pair", "--picture", tmp_path / "a.png"], "report": ["--html", tmp_path / "page.html"]}
    done = shell(command, output, *options[command], "--sources", place)
    assert done.returncode == 0, done.stderr
    assert requests and credentials_in(requests) == []


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_requests_to_a_server_that_is_named_again_are_signed(stranger, tmp_path, shell, scheme):
    server, requests = stranger
    output = write_shared_output(tmp_path / "out", server, scheme)
    place = ["--sources", f"{scheme}://bucket/private", "--endpoint-url", server]
    done = shell("show", output, "pair", "--no-decode", "--picture", tmp_path / "a.png", *place)
    assert done.returncode == 0, done.stderr
    assert requests and all("authorization:" in one.lower() for one in requests)
    assert CANARY not in done.stdout + done.stderr


def test_the_server_of_the_environment_needs_no_repetition(stranger, tmp_path, shell, monkeypatch):
    server, requests = stranger
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    output = write_shared_output(tmp_path / "out", server)
    options = ["--no-decode", "--picture", tmp_path / "a.png", "--sources", "s3://bucket"]
    assert shell("show", output, "pair", *options).returncode == 0
    assert requests and all("authorization:" in one.lower() for one in requests)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory, make_job) -> Path:
    folder = tmp_path_factory.mktemp("own")
    image, mask = np.full((16, 24, 3), 200, np.uint8), np.zeros((16, 24), np.uint8)
    write_pairs(folder, {"a": (image, mask)})
    return Path(encode_here(make_job(folder / "images", folder / "masks", folder / "out", dtype="float32")))


@pytest.fixture
def shared(encoded, tmp_path, stranger):
    """A complete output whose job and rows name a stranger's server."""
    output = tmp_path / "shared"
    for path in (encoded, *encoded.rglob("*")):
        copy = output / path.relative_to(encoded)
        copy.mkdir() if path.is_dir() else copy.write_bytes(path.read_bytes())
    job = json.loads((output / "_job.json").read_text())
    job |= {"access": {"endpoint_url": stranger[0]}, "source": {"images": "s3://bucket/a", "masks": "s3://bucket/b"}}
    (output / "_job.json").write_text(json.dumps(job))

    def rename(rows):
        for one in rows:
            one |= {"image_uri": "s3://bucket/a/a.png", "mask_uri": "s3://bucket/b/a.png"}

    (file,) = output.glob("*.parquet")
    change_rows(file, rename)
    return output, job


def reencode(output: Path, job: dict, vae: str = "", **reading):
    state = OutputState(str(output), job["job"], "")
    return reencode_rows({chunk_name(0, 0): [0]}, state, job, vae, SourceReading(**reading))


def test_verify_asks_for_the_vae_and_the_sources_of_a_stranger(shared, stranger, shell):
    output, job = shared
    done = shell("verify", output, "--sample", 1)
    assert done.returncode == 2
    assert f"add --vae {job['vae_source']} --sources s3://bucket/a --sources s3://bucket/b" in done.stderr
    with pytest.raises(UsageError, match="add --sources s3://bucket/a --sources s3://bucket/b"):
        reencode(output, job, job["vae_source"])
    with pytest.raises(UsageError, match="those of a are not below a prefix that you named"):
        reencode(output, job, job["vae_source"], sources=("s3://bucket/a",))
    assert stranger[1] == []


@pytest.mark.parametrize("named", [False, True])
def test_verify_signs_only_for_a_server_that_is_named_again(shared, stranger, named):
    output, job = shared
    endpoint = {"endpoint_url": stranger[0]} if named else {}
    reencode(output, job, job["vae_source"], sources=("s3://bucket",), **endpoint)
    assert len(stranger[1]) == 2
    assert len(credentials_in(stranger[1])) == (2 if named else 0)


def test_the_owner_names_nothing_again(encoded, shell, tmp_path):
    job = json.loads((encoded / "_job.json").read_text())
    assert is_own(str(encoded), job)
    assert reencode(encoded, job).rows == 1
    done = shell("show", encoded, "a", "--picture", tmp_path / "a.png")
    assert "missing" not in done.stdout and "not decoded" not in done.stdout


@pytest.mark.parametrize("name", ["job", "source", "access", "vae_source"])
def test_an_edited_or_copied_job_is_a_strangers(encoded, tmp_path, name):
    job = json.loads((encoded / "_job.json").read_text())
    edited = {**job, name: {**job[name], "endpoint_url": "http://evil"} if isinstance(job[name], dict) else "other"}
    assert not is_own(str(encoded), edited)
    assert not is_own(str(tmp_path / "copy"), job)
    assert not is_own(str(encoded), {})


def test_marks_are_private_and_may_be_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    mark_own("s3://b/out", {"job": "1"})
    assert is_own("s3://b/out", {"job": "1"}) and not is_own("s3://b/other", {"job": "1"})
    folder = tmp_path / "state/inpaint-encode/outputs"
    assert folder.stat().st_mode & 0o077 == 0
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    mark_own("s3://b/out", {"job": "1"})
    assert not is_own("s3://b/out", {"job": "1"})


@pytest.mark.parametrize(
    "uri",
    [
        *("/etc/passwd", "{folder}/../secret.png", "{folder}/link/secret.png", "{folder}x/a.png", "file:///etc/passwd"),
        *("s3://bucket-2/x", "s3://bucket/images-2/x", "s3://bucket/images/../x", "gs://bucket/images/x"),
        *("s3://bucket/images/a?/../../x", "s3://bucket/images/a#/../../x"),
        *("http://169.254.169.254/latest/meta-data", "http://intranet/x", "https://host.evil/x", "https://host@evil/x"),
        *("https://host/a/../../x", "https://host/a/%2e%2e/x", "https://host/a/%252e%252e/x", "https://host/a\\..\\x"),
    ],
)
def test_nothing_else_is_read(tmp_path, uri):
    folder = tmp_path / "images"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(b"5ec2e7")
    (folder / "link").symlink_to(tmp_path)
    access = Access(prefixes=(str(folder), "s3://bucket/images", "https://host/a"))
    uri = uri.format(folder=folder)
    for call in (storage.read, storage.stat, lambda *args: next(storage.list_objects(*args))):
        with pytest.raises(storage.NotAllowed):
            call(uri, access)
    with pytest.raises(storage.NotAllowed):
        storage.read_range(uri, 0, 1, access)


def test_what_is_below_a_prefix_is_read(tmp_path):
    (tmp_path / "a.png").write_bytes(b"1")
    assert storage.read(f"{tmp_path}/a.png", Access(prefixes=(str(tmp_path),))).data == b"1"
    assert storage.is_below("s3://bucket/a/b..c/..d", "s3://bucket")
    assert storage.is_below("https://host/a.png?x=../b", "https://host")
    assert storage.is_below("s3://b/x.parquet", "s3://b/x.parquet")


def test_damaged_and_hostile_records_are_ignored(monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    for access in (
        [],
        "x",
        {"endpoint_url": 5},
        {"endpoint_url": "http://u:p@host"},
        {"prefixes": None},
        {"x": 1},
        None,
    ):
        found = source_access("s3://b/out", {"access": access}, SourceReading())
        assert (found.endpoint_url, found.prefixes) == ("", ())
    found = source_access("s3://b/out", {"access": {"requester_pays": True}}, SourceReading(sources=("s3://b/x/",)))
    assert (found.requester_pays, found.prefixes) == (False, ("s3://b/x",))
    with pytest.raises(UsageError, match="--sources: "):
        source_access("s3://b/out", {}, SourceReading(sources=("az://b",)))
    with pytest.raises(UsageError, match="--vae None"):
        check_named("s3://b/out", {"source": 5}, SourceReading(), "")
    assert suggest_sources("s3://b/x/a.tar#member=1", {"source": {"images": "s3://b"}}) == "--sources s3://b"
    assert suggest_sources("s3://c/x/a.png", {"source": {"images": "s3://b"}}) == "--sources s3://c/x"


def test_advice_is_safe_to_paste_into_a_shell():
    hostile = {"source": {"images": "s3://b/$(touch x)"}, "vae_source": "--repair"}
    with pytest.raises(UsageError) as refused:
        check_named("s3://b/out", hostile, SourceReading(), "")
    assert str(refused.value).endswith("add --vae=--repair --sources 's3://b/$(touch x)'")
    assert suggest_sources("s3://c/;x/a.png", hostile) == "--sources 's3://c/;x'"


def test_an_owners_rows_are_read_below_the_prefixes_of_the_job(monkeypatch, tmp_path):
    """Whoever can write to the output may change its rows."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for source, prefixes in (
        ({"images": "s3://b/i", "masks": "s3://b/m", "pairs": ""}, ("s3://b/i", "s3://b/m")),
        ({"images": "/data/i", "masks": "/data/m"}, None),
        ({"pairs": "s3://b/list.csv"}, None),
    ):
        job = {"job": "1", "source": source}
        mark_own("s3://b/out", job)
        assert source_access("s3://b/out", job, SourceReading()).prefixes == prefixes


def test_files_that_a_parquet_source_names_are_below_a_prefix_too(tmp_path):
    (tmp_path / "secret").write_bytes(b"5ec2e7")
    (tmp_path / "shared").mkdir()
    path = str(tmp_path / "shared/x.parquet")
    pq.write_table(pa.table({"image": [{"bytes": None, "path": str(tmp_path / "secret")}]}), path)
    reader = PairReader(Access(prefixes=(f"{tmp_path}/shared",)))
    with pytest.raises(storage.NotAllowed):
        reader.read(f"{path}#row=0&column=image")
    assert PairReader(Access(prefixes=(str(tmp_path),))).read(f"{path}#row=0&column=image").data == b"5ec2e7"
