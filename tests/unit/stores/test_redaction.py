"""No credentials are printed, logged or stored, and no characters that control a terminal."""

import io
import json
import logging
import time

import pytest

from inpaint_encode.job.progress import SafeConsole
from inpaint_encode.stores import retries
from inpaint_encode.stores.redaction import (
    check_credentials,
    for_terminal,
    get_logger,
    printable,
    redacted,
    redacted_json,
    remember_secret,
)
from tests.fabricated import latents, row, write_output

SIGNED = "http://127.0.0.1:1/x.png?X-Amz-Signature=5ec2e7&X-Amz-Credential=AKIA"
CANARY = "CanAry5ec2e7+/x0987654321"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{SIGNED} no answer", "http://127.0.0.1:1/x.png?X-Amz-Signature=…&X-Amz-Credential=… no answer"),
        ("HTTPS://host?sig=5ec2e7", "HTTPS://host?sig=…"),
        ("https://host/a?id=1&sig=5ec2e7&n=2#x", "https://host/a?id=1&sig=…&n=2#x"),
        (f"https://host/a?{CANARY}&other={CANARY}", "https://host/a?…&other=…"),
        (
            "Max retries exceeded with url: /x.png?sig=5ec2e7 (Caused by",
            "Max retries exceeded with url: /x.png?sig=… (Caused by",
        ),
        ("http://me:5ec2e7@host:9000/a@2x.png", "http://…@host:9000/a@2x.png"),
        ("s3://AKIA:5e/c2+e7/x@bucket/a@2x.png", "s3://…@2x.png"),
        ("https://me:5e/c2e7@host/a", "https://…@host/a"),
        ("http://me:5e@c2e7@host, and http://5ec2e7@other", "http://…@host, and http://…@other"),
        *[
            (same, same)
            for same in (
                "s3://b/what?.png",
                "s3://b/a:b@2x.png",
                "s3://arn:aws:s3:us-west-2:123456789012:accesspoint/images/a@2x.png",
                "http://[::1]:9000/a@2x.png",
                "https://host:443/a@2x.png",
                "random:brush?seed=7&index=1",
                "https://host/a.parquet#row=1",
                "https://host/a.png?id=1&w=512",
                "the authorization, which the store asks for, and a basic idea",
            )
        ],
    ],
)
def test_only_logins_and_signatures_are_removed(text, said):
    assert redacted(text) == said


@pytest.mark.parametrize(
    "header",
    [
        f"Authorization: Bearer {CANARY}",
        f"{{'Authorization': 'Bearer {CANARY}', 'Accept': '*/*'}}",
        f"{{'Authorization': b'AWS4-HMAC-SHA256 Credential=AKIA{CANARY}, SignedHeaders=host, Signature={CANARY}'}}",
        f"('Proxy-Authorization', 'Basic {CANARY}')",
        f'{{"authorization": "SharedKey account:{CANARY}"}}',
        f"X-Amz-Security-Token: {CANARY}",
        f"{{'x-amz-security-token': b'{CANARY}'}}",
        f"Cookie: {CANARY}",
        f"x-api-key={CANARY}",
        f"invalid header value b'Bearer {CANARY}\\n'",
        f"AccountName=a;AccountKey={CANARY};EndpointSuffix=x",
    ],
)
def test_headers_that_libraries_quote_have_no_credentials(header):
    assert "5ec2e7" not in redacted(f"error: {header} in the request")


@pytest.mark.parametrize(
    "variable",
    [
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
        *("AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_CLIENT_SECRET", "AZURE_STORAGE_SAS_TOKEN"),
        *("AZURE_STORAGE_CONNECTION_STRING", "GOOGLE_API_KEY", "GOOGLE_SERVICE_ACCOUNT_KEY", "RAY_AUTH_TOKEN"),
        *("AWS_CONTAINER_AUTHORIZATION_TOKEN", "WANDB_API_KEY", "DB_PASSWORD"),
    ],
)
@pytest.mark.parametrize(
    "quoted",
    ["{}", "{}\n", "first\n{}", '{{"type": "service_account", "private_key": "-----BEGIN\\n{}\\n-----END"}}'],
)
def test_values_of_credential_variables_are_removed_in_every_form(monkeypatch, variable, quoted):
    value = quoted.format(CANARY)
    monkeypatch.setenv(variable, value)
    for text in (value, repr(value), json.dumps(value), CANARY, CANARY.replace("+", "%2B").replace("/", "%2F")):
        assert "5ec2e7" not in redacted(f"the header {text} is invalid"), text


def test_paths_to_credentials_are_shown(monkeypatch):
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/home/me/credentials.json")
        assert redacted("/home/me/credentials.json does not exist") == "/home/me/credentials.json does not exist"


def test_credentials_from_files_and_roles_are_removed():
    remember_secret("of-a-role-5ec2e7\nline", None)
    assert redacted("got of-a-role-5ec2e7") == "got …"


@pytest.mark.parametrize("control", ["\n", "\r", "\x1b", "\t", "\x7f"])
def test_control_characters_in_credentials_are_refused_without_showing_them(monkeypatch, control):
    monkeypatch.setenv("AWS_SESSION_TOKEN", f"5ec2e7{control}")
    with pytest.raises(PermissionError, match="AWS_SESSION_TOKEN contains a") as refused:
        check_credentials("AWS_")
    assert "5ec2e7" not in str(refused.value)
    check_credentials("GOOGLE_", "HF_")


def test_terminals_are_not_controlled():
    hostile = "a\x1b]0;title\x07\x1b[2J\rb\u202egnp.exe\x9b31m\ud800"
    shown = printable(hostile)
    assert shown == "a\\x1b]0;title\\x07\\x1b[2J\\x0db\\u202egnp.exe\\x9b31m\\ud800"
    assert printable("two\nlines\tand ümläuts, 画像") == "two\nlines\tand ümläuts, 画像"
    file = io.StringIO()
    console = SafeConsole(file=file, force_terminal=True, color_system="truecolor", width=200)
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    table = Table("key")
    table.add_row(escape(hostile))
    console.print(f"[red]{escape(hostile)}[/]", table, Text(hostile), SIGNED)
    said = file.getvalue()
    assert said.count("gnp.exe") == 3 and "5ec2e7" not in said
    assert not {"\x1b]", "\x1b[2J", "\x07", "\u202e", "\x9b"} & {
        part for part in ("\x1b]", "\x1b[2J", "\x07", "\u202e", "\x9b") if part in said
    }


def test_log_records_have_no_credentials(monkeypatch):
    monkeypatch.setenv("AWS_SESSION_TOKEN", CANARY)
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(message)s %(reason)s"))
    logger = get_logger("inpaint_encode.test_redaction")
    logger.addHandler(handler)
    try:
        raise OSError(f"header {CANARY}")
    except OSError:
        logger.warning("at %s", SIGNED, exc_info=True, extra={"reason": f"token {CANARY}"})
    finally:
        logger.removeHandler(handler)
    assert "5ec2e7" not in stream.getvalue()
    assert "OSError: header …" in stream.getvalue() and "token …" in stream.getvalue()


def test_json_has_no_credentials_in_keys_and_values():
    assert json.loads(redacted_json({"a": [SIGNED, 1, None], SIGNED: {"b": SIGNED}})) == {
        "a": [redacted(SIGNED), 1, None],
        redacted(SIGNED): {"b": redacted(SIGNED)},
    }
    assert for_terminal(SIGNED) == redacted(SIGNED)


@pytest.fixture
def signed(tmp_path, monkeypatch):
    """Write an output whose row and manifest have a signed URL of a closed port."""
    monkeypatch.setattr(retries, "RETRY_BUDGET_S", 0.001)
    folder = write_output(tmp_path / "out", [[row("pair", latents(1)[0], image_uri=SIGNED)]])
    job = json.loads((folder / "_job.json").read_text())
    (folder / "_job.json").write_text(json.dumps({**job, "source": {"pairs": SIGNED.replace("x.png", "list.csv")}}))
    return folder


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["show", "{}", "pair", "--no-decode", "--picture", "{}.png"], 0),
        (["info", "{}"], 0),
        (["info", "{}", "--as-json"], 0),
        (["doctor", SIGNED, "--no-ray"], 1),
    ],
)
def test_commands_print_no_signature(signed, shell, command, code):
    done = shell(*[part.format(signed) for part in command])
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    assert "http://127.0.0.1:1/" in said and "Signature=…" in said.replace("\\u2026", "…")
    assert "5ec2e7" not in said and "AKIA" not in said


@pytest.mark.parametrize("start", ["", "http://a?"])
@pytest.mark.parametrize(
    "part",
    [
        *("https://", "https://a", "url: /", "://", "a=1&", "%41=1&"),
        *("x-amz-", "x-amz-a-", "x-amz-token", "x-amz-token-", "x-amz-token ", "cookie", "authorization: "),
        *("eyJ-", "eyJaaaaaaaa.", "bearer ", "basic  ", "AWS ", "sig=", "-----BEGIN PRIVATE ", "-----END PRIVATE "),
    ],
)
def test_the_time_for_a_text_of_a_stranger_is_linear(start, part):
    """With a pattern that tries each part of a word, 200 kB took minutes."""
    began = time.process_time()
    redacted(start + part * (200_000 // len(part)))
    assert time.process_time() - began < 3


@pytest.mark.parametrize("name", ["x-amz-meta-x-amz-security-token", "x-goog-cookie", "x-amz-a-token-b"])
def test_headers_whose_names_contain_others(name):
    assert redacted(f"{name}: {CANARY}") == f"{name}: …"


def test_a_variable_that_changes(monkeypatch):
    for value in (CANARY, CANARY[::-1]):
        monkeypatch.setenv("MY_TOKEN", value)
        assert redacted(f"it is {value}") == "it is …"
