"""Exit codes and sentences of errors that end a command."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from inpaint_encode.errors import JobFailed
from inpaint_encode.job.cluster import _check_reachable
from inpaint_encode.stores.s3 import forget_clients


@pytest.mark.parametrize("entry", ["from inpaint_encode.cli import main; main()", "runpy"])
@pytest.mark.parametrize(
    ("missing", "arguments", "command"),
    [
        ("cyclopts", [], "inpaint-encode"),
        ("pydantic", ["--help"], "inpaint-encode"),
        ("rich", ["info", "out"], "info"),
        ("ray", ["encode", "--images", "a", "--masks", "b", "--vae", "c", "--output", "d"], "encode"),
    ],
)
def test_missing_package_ends_in_one_sentence(entry, missing, arguments, command, tmp_path):
    """A base installation has none of these packages."""
    run = "import runpy; runpy.run_module('inpaint_encode', run_name='__main__')" if entry == "runpy" else entry
    code = f"import sys; sys.modules[{missing!r}] = None; {run}"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {command} needs packages that are not installed; "
        f"run: pip install 'inpaint-encode[job]' (missing: {missing})\n"
    )


def test_broken_own_module_is_not_a_missing_package():
    broken = "import sys; sys.modules['inpaint_encode.cli.arguments'] = None"
    code = f"{broken}; from inpaint_encode.cli import main; main(['info'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, "info failed unexpectedly: ModuleNotFoundError" in done.stderr) == (1, True)


class PanicException(BaseException):
    """Like pyo3's, which is raised where Rust code panics."""


UNEXPECTED = [
    PanicException("index out of\nbounds: \x1b[31m https://user:word@host/a.jpg?X-Amz-Signature=5ec2e7"),
    RecursionError("maximum recursion depth exceeded"),
    MemoryError(),
    KeyError("x" * 100_000),
]


@pytest.mark.parametrize("error", UNEXPECTED, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("shown", ["", "1"])
def test_an_unexpected_error_is_one_line_and_a_private_file(shell, monkeypatch, tmp_path, error, shown):
    def fail(_tokens):
        raise error

    monkeypatch.setattr(sys.modules["inpaint_encode.cli.main"], "_run", fail)
    monkeypatch.setenv("INPAINT_ENCODE_TRACEBACK", shown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    done = shell("info", "out")
    assert done.returncode == 1
    *printed, line = done.stderr.splitlines()
    assert line.startswith(f"error: info failed unexpectedly: {type(error).__name__}: ")
    assert line.isprintable() and len(line) < 1_000
    path = Path(re.search(r" the traceback is in (\S+); please report it$", line)[1])
    text = path.read_text()
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert "Traceback (most recent call last)" in text
    assert "5ec2e7" not in text + done.stderr and "word" not in text + done.stderr
    assert text.splitlines() == printed[:-1] if shown else printed == []


def test_an_unexpected_error_is_one_line_where_no_file_can_be_written(shell, monkeypatch, tmp_path):
    def fail(_tokens):
        raise RecursionError

    monkeypatch.setattr(sys.modules["inpaint_encode.cli.main"], "_run", fail)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    done = shell("info", "out")
    assert "INPAINT_ENCODE_TRACEBACK=1 prints the traceback (it could not be written to a file: " in done.stderr
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)


@pytest.mark.parametrize("script", ["encode", "plan", "verify", "export", "report", "doctor"])
def test_scripts_of_jobs_end_in_one_line(script):
    broken = "import runpy, sys; sys.modules['inpaint_encode.cli.arguments'] = None"
    code = f"{broken}; sys.argv = ['x']; runpy.run_path('jobs/{script}.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert done.stderr.startswith(f"error: {script} failed unexpectedly: ModuleNotFoundError")


def test_import_changes_no_signal_handler():
    code = (
        "import signal; kinds = (signal.SIGINT, signal.SIGTERM); before = [signal.getsignal(one) for one in kinds]; "
        "import inpaint_encode.cli.commands; assert before == [signal.getsignal(one) for one in kinds]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_incomplete_credentials_are_named(shell, s3, monkeypatch):
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    forget_clients()
    done = shell("plan", "--images", s3.uri("a"), "--masks", s3.uri("b"))
    forget_clients()
    assert done.returncode == 2
    assert f"--images {s3.uri('a')} cannot be listed: Partial credentials found in env" in done.stderr


def test_error_of_a_store_recommends_doctor(shell, s3):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        forget_clients()
        done = shell("report", s3.uri("out"))
    forget_clients()
    assert done.returncode == 1
    sentence = (
        "error: reading or writing failed; run `inpaint-encode doctor` to check disks and stores (PermissionError: "
    )
    assert done.stderr.startswith(sentence)


def test_unreachable_cluster_fails_at_once():
    """Ray alone would retry for ten minutes or more."""
    with pytest.raises(
        JobFailed, match=r"cannot connect to .* at 127\.0\.0\.1:1; check --address .*Connection refused"
    ):
        _check_reachable("127.0.0.1:1")
