"""A credential is planted in every place that can hold one; nothing that a command prints or writes has it."""

import io
import json
import logging
from pathlib import Path

import pyarrow as pa
import pytest

from inpaint_encode import iter_rows, load_vae, open_latents
from inpaint_encode.core.chunk import Pair, Reject
from inpaint_encode.errors import EncodeError
from inpaint_encode.job.progress import _Lines
from inpaint_encode.output.report import RunStats, write_report
from inpaint_encode.output.resume import job_record
from inpaint_encode.output.rows import rejects_table
from inpaint_encode.settings import Source, SourceAccess, VaeSource
from inpaint_encode.sources import LeftOut, open_source
from inpaint_encode.stores import clients, retries, storage
from inpaint_encode.stores import s3 as s3_store
from inpaint_encode.stores.redaction import get_logger
from inpaint_encode.tools.verify.findings import Problem, VerifyResult, print_result
from tests.fabricated import latents, metadata, row, write_output, write_rejects

CANARY = "CanAry5ec2e7x0987654321"
"""In headers and URIs."""
KNOWN = "EnvVar5ec2e7x1234567890"
"""In variables of the environment, and where a library quotes their values."""
HEADERS = [
    f"Authorization: Bearer {CANARY}",
    f"{{'Authorization': b'AWS4-HMAC-SHA256 Credential={CANARY}/20261128, SignedHeaders=host, Signature={CANARY}'}}",
    f"x-amz-security-token: {CANARY}",
    f"Proxy-Authorization: Basic {CANARY}",
    f"Set-Cookie: {CANARY}",
]
URIS = [
    f"https://me:{CANARY}@host/a.png",
    f"http://{CANARY}@host:9000/a.png",
    *(
        f"https://host/a.png?id=1&{name}={CANARY}"
        for name in (
            *("X-Amz-Signature", "X-Amz-Credential", "X-Amz-Security-Token", "X-Goog-Signature", "X-Goog-Credential"),
            *("Signature", "AWSAccessKeyId", "GoogleAccessId", "Key-Pair-Id", "Policy", "sig", "skoid", "token"),
            *("access_token", "api_key", "password", "x-goog-api-key"),
        )
    ),
]
VARIABLES = [
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "AZURE_STORAGE_KEY"),
    *("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_CLIENT_SECRET", "GOOGLE_API_KEY", "GOOGLE_SERVICE_ACCOUNT_KEY"),
    *("RAY_AUTH_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN"),
]
TEXTS = [*HEADERS, *URIS, f"invalid header value {KNOWN!r}", f"b'{KNOWN}\\n' is not valid"]


@pytest.fixture
def variables(monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, f"{KNOWN}\n" if name == "AWS_SESSION_TOKEN" else KNOWN)
    s3_store.forget_clients()
    yield
    s3_store.forget_clients()


@pytest.mark.parametrize("text", TEXTS)
def test_no_sink_has_it(variables, text, tmp_path, capsys, monkeypatch):
    """The sinks: progress, errors of stores, logs, rejects, the report, the job's record."""
    sunk = []
    display = _Lines()
    display.say(text)
    with pytest.raises(storage.Unavailable) as raised, clients.translate_errors():
        raise TimeoutError(text)
    sunk.append(str(raised.value))
    stream, logger = io.StringIO(), get_logger("inpaint_encode.canaries")
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    try:
        raise OSError(text)
    except OSError:
        logger.exception("failed: %s", text)
    finally:
        logger.removeHandler(handler)
    sunk.append(stream.getvalue())
    sunk.append(str(rejects_table([Reject(Pair("k", "i", "m"), "fetch.failed", f"failed: {text}")]).to_pylist()))
    left_out = LeftOut(unpaired_image_uris=[text], unreadable_names=[text])
    report = str(tmp_path / "_report.json")
    write_report(report, {"job": text}, {"pairs": 0}, left_out, RunStats(), RunStats())
    sunk.append(Path(report).read_text())
    captured = capsys.readouterr()
    assert "5ec2e7" not in "".join([*sunk, captured.out, captured.err])


@pytest.mark.parametrize("uri", URIS[2:])
def test_the_record_of_a_job_does_not_have_it(variables, make_job, uri):
    job = make_job("in", "in", "out")
    source = Source(pairs=f"{uri}&x=.csv", image_column=KNOWN)
    job = job.model_copy(update={"source": source, "vae": VaeSource(vae=uri)})
    record = job_record(job, metadata(vae_source=uri), [pa.field("url", pa.string())])
    assert "5ec2e7" not in json.dumps(record)


@pytest.mark.parametrize("text", TEXTS)
def test_pages_and_tables_do_not_have_it(variables, text, tmp_path, shell):
    folder = write_output(tmp_path / "out", [[row("pair", latents(1)[0], image_uri=text, mask_uri=text)]])
    write_rejects(folder, 0, [{"key": "bad", "error": "fetch.failed", "message": text, "image_uri": text}])
    job = json.loads((folder / "_job.json").read_text())
    (folder / "_job.json").write_text(json.dumps({**job, "vae_source": text, "source": {"images": text}}))
    said = ""
    for command in (
        ["show", folder, "pair", "--picture", tmp_path / "a.png"],
        ["show", folder, "bad", "--picture", tmp_path / "a.png"],
        ["info", folder],
        ["info", folder, "--as-json"],
        ["report", folder, "--html", tmp_path / "page.html"],
    ):
        done = shell(*command)
        said += done.stdout + done.stderr
    said += (tmp_path / "page.html").read_text()
    assert "5ec2e7" not in "".join(said.split())  # tables wrap long lines


def test_findings_of_verify_do_not_have_it(variables, capsys):
    from inpaint_encode.job.progress import SafeConsole

    problems = [Problem("rows", f"file-{KNOWN}", f"{text} \x1b[2J", "0") for text in TEXTS]
    result = VerifyResult("out", problems=problems)
    print_result(result, SafeConsole(width=10_000))
    said = capsys.readouterr().out
    assert "5ec2e7" not in said and "\x1b[2J" not in said


@pytest.mark.parametrize("variable", VARIABLES[:8])
@pytest.mark.parametrize("control", ["\n", "\r\n", "\x1b[31m", "\t"])
def test_doctor_names_the_variable_and_not_its_value(s3, monkeypatch, shell, variable, control):
    monkeypatch.setattr(retries, "RETRY_BUDGET_S", 0.001)
    monkeypatch.setenv(variable, f"{KNOWN}{control}")
    s3_store.forget_clients()
    done = shell("doctor", s3.uri("canaries"), "--no-ray")
    s3_store.forget_clients()
    said = done.stdout + done.stderr
    assert done.returncode == 1 and f"the environment variable {variable} contains a" in " ".join(said.split())
    assert "5ec2e7" not in "".join(said.split()) and "\x1b[31m" not in said


@pytest.mark.parametrize("text", [URIS[0], URIS[2], f"/no/such/{KNOWN}"])
@pytest.mark.parametrize("option", ["--vae", "--pairs", "--output", "--endpoint-url", "--address"])
def test_errors_of_options_do_not_have_it(variables, shell, option, text, tmp_path):
    given = {"--vae": "/none", "--pairs": str(tmp_path / "a.csv"), "--output": str(tmp_path / "out"), option: text}
    (tmp_path / "a.csv").write_text("image,mask\na,b\n")
    done = shell("encode", *[part for pair in given.items() for part in pair])
    assert done.returncode in (1, 2)
    assert "5ec2e7" not in "".join((done.stdout + done.stderr).split())


@pytest.mark.parametrize("uri", [URIS[0], URIS[2], f"s3://me:{CANARY}@bucket/a"])
@pytest.mark.parametrize(
    "call",
    [
        load_vae,
        open_latents,
        lambda uri: list(iter_rows(uri)),
        lambda uri: SourceAccess(endpoint_url=uri),
        lambda uri: open_source(Source(images=uri, masks=uri)),
        lambda uri: open_source(Source(pairs=uri)),
    ],
)
def test_errors_of_the_library_do_not_have_it(variables, call, uri):
    """Whoever shares a notebook shares the messages in it."""
    with pytest.raises((ValueError, EncodeError)) as raised:
        call(uri)
    assert "5ec2e7" not in str(raised.value)


@pytest.mark.parametrize("uri", [URIS[0], f"s3://me:{CANARY}@bucket/a", f"s3://AKIA:{CANARY}/x@bucket/a"])
def test_no_request_has_a_login(uri):
    """It would be a part of the bucket's name, or of the host's."""
    for call in (storage.read, storage.stat, lambda uri: next(storage.list_objects(uri)), storage.delete):
        with pytest.raises(PermissionError, match="must not contain credentials"):
            call(uri)
