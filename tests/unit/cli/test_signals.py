"""What a signal does to a command, at moments that a job rarely meets; each in a process of its own."""

import signal
import subprocess
import sys
import time
from functools import partial

import pytest

COMMAND = """
import hashlib, multiprocessing, sys, threading, time
from inpaint_encode.cli import main, signals
from inpaint_encode.output.lease import acquire_lease

signals.GRACE_S, signals.REPEAT_S = 2.0, 0.2

def ready():
    print("ready", flush=True)

def run(tokens):
    with acquire_lease(sys.argv[1] + "/_lease.json", print):
        {body}

sys.modules["inpaint_encode.cli.main"]._run = run
main([])
"""

WAITS = "ready(); time.sleep(60)"
LOSES = """
        try:
            ready(); time.sleep(60)
        except KeyboardInterrupt:
            pass  # as in a callback of a library
        time.sleep(60)"""
CLEANS_UP = """
        try:
            ready(); time.sleep(60)
        finally:
            for _ in range(10):
                time.sleep(0.1)
            print("cleaned up", flush=True)"""
FAILS = """
        try:
            ready(); time.sleep(60)
        finally:
            raise OSError("the store is down")"""
EXITS = """
        try:
            ready(); time.sleep(60)
        except KeyboardInterrupt:
            sys.exit(15)  # as Ray's handler of SIGTERM"""
FORKS = """
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        time.sleep(0.3)
        child.terminate()
        child.join()
        time.sleep(1)
        ready()"""
ENDS = "threading.Thread(target=lambda: (time.sleep(0.5), ready(), time.sleep(1))).start()"
IN_C = "threading.Timer(0.3, ready).start(); hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"


def run(folder, body, number, times=1, preexec=None):
    """Start a command, send it a signal; return its exit code, its output and its seconds since the signal."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(body=body), folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=preexec,
    )
    assert process.stdout.readline() == "ready\n"
    begun = time.monotonic()
    for _ in range(times):
        process.send_signal(number)
        time.sleep(0.3)
    output = process.communicate(timeout=30)[0]
    return process.returncode, output, time.monotonic() - begun


@pytest.mark.parametrize(
    ("body", "number", "code"),
    [
        (WAITS, signal.SIGTERM, 143),
        (WAITS, signal.SIGINT, 130),
        (LOSES, signal.SIGTERM, 143),
        (FAILS, signal.SIGTERM, 143),
        (EXITS, signal.SIGTERM, 143),
    ],
    ids=["sigterm", "ctrl-c", "lost-exception", "failing-clean-up", "other-exit"],
)
def test_a_signal_ends_a_command_and_releases_its_lease(tmp_path, body, number, code):
    ended, output, seconds = run(tmp_path, body, number)
    assert (ended, output) == (code, "error: interrupted; run the same command again to resume\n")
    assert list(tmp_path.iterdir()) == []
    assert seconds < 1.9


def test_further_signals_do_not_interrupt_the_clean_up(tmp_path):
    ended, output, _ = run(tmp_path, CLEANS_UP, signal.SIGTERM, times=3)
    assert (ended, output.splitlines()[0]) == (143, "cleaned up")
    assert list(tmp_path.iterdir()) == []


def test_a_call_that_cannot_be_interrupted_ends_after_the_grace_period(tmp_path):
    """The main thread computes outside Python, so that no handler runs; the lease is released all the same."""
    ended, _, seconds = run(tmp_path, IN_C, signal.SIGTERM)
    assert ended == 143
    assert list(tmp_path.iterdir()) == []
    assert 1.5 < seconds < 10


def test_a_command_that_inherits_an_ignored_sigterm_ends_by_it(tmp_path):
    """cluster/slurm.sh ignores SIGTERM around `ray symmetric-run`, which starts the command."""
    ignore = partial(signal.signal, signal.SIGTERM, signal.SIG_IGN)
    assert run(tmp_path, WAITS, signal.SIGTERM, preexec=ignore)[0] == 143
    assert list(tmp_path.iterdir()) == []


def test_sigterm_of_a_forked_child_is_not_the_command_s(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", COMMAND.format(body=FORKS), tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "ready\n"), done.stderr


def test_a_signal_while_python_ends_prints_no_traceback(tmp_path):
    """Python waits for the threads of a command that has ended."""
    assert run(tmp_path, ENDS, signal.SIGINT)[:2] == (0, "")
