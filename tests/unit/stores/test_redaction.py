"""No credentials are printed, neither from URIs nor from errors that quote them."""

import json

import pytest

from inpaint_encode.stores import retries
from inpaint_encode.stores.redaction import redacted
from tests.fabricated import latents, row, write_output

SIGNED = "http://127.0.0.1:1/x.png?X-Amz-Signature=5ec2e7&X-Amz-Credential=AKIA"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{SIGNED}: no answer", "http://127.0.0.1:1/x.png?… no answer"),
        ("HTTPS://host?sig=5ec2e7", "HTTPS://host?…"),
        (
            "Max retries exceeded with url: /x.png?sig=5ec2e7 (Caused by",
            "Max retries exceeded with url: /x.png?… (Caused by",
        ),
        ("http://me:5ec2e7@host:9000/a@2x.png", "http://…@host:9000/a@2x.png"),
        ("http://me:5e@c2e7@host, and http://5ec2e7@other", "http://…@host, and http://…@other"),
        *[(same, same) for same in ("s3://b/what?.png", "random:brush?seed=7&index=1", "https://host/a.parquet#row=1")],
    ],
)
def test_only_logins_and_queries_are_removed(text, said):
    assert redacted(text) == said


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
    assert "http://127.0.0.1:1/" in said and "?…" in said.replace("\\u2026", "…")
    assert "5ec2e7" not in said and "AKIA" not in said
