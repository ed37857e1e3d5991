"""The meter is compared with what the measured processes report of themselves, never with a clock."""

import subprocess
import sys
import time

import psutil

from jobs.benchmarks.cpu import CpuMeter

BURN = "import time\nwhile time.process_time() < 0.4: pass\nprint(time.process_time(), flush=True)\n"
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
TICKS = 0.05  # the kernel counts in ticks of 10 ms


def other_children() -> list[int]:
    """Processes that earlier tests have started, which may work at the same time."""
    return [child.pid for child in psutil.Process().children()]


def test_an_ended_child_counts_once():
    with CpuMeter(exclude=other_children()) as meter:
        before, own = meter.read(), time.process_time() - meter.own_seconds
        child = subprocess.run([sys.executable, "-c", BURN], check=True, capture_output=True, text=True)
        used = meter.read().since(before).seconds - (time.process_time() - meter.own_seconds - own)
    assert float(child.stdout) - TICKS <= used < 1.5 * float(child.stdout)


def test_a_child_of_a_parent_that_ignores_sigchld_counts_once():
    """Ray's raylet ignores it, and the kernel then adds the child's time to no parent."""
    parent_code = "import signal, subprocess, sys\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
    parent_code += "child = subprocess.Popen([sys.executable, '-c', sys.argv[1]])\nprint(child.pid, flush=True)\n"
    parent_code += "sys.stdin.read()"
    child_code = BURN + "time.sleep(600)"  # until the meter has sampled the child after its work
    with CpuMeter(exclude=other_children(), period=0.02) as meter:
        before = meter.read()
        parent = subprocess.Popen([sys.executable, "-c", parent_code, child_code], **PIPES)
        child = psutil.Process(int(parent.stdout.readline()))
        reported = float(parent.stdout.readline())
        deadline = time.monotonic() + 60
        while meter.read().since(before).seconds < reported - TICKS and time.monotonic() < deadline:
            time.sleep(0.02)
        child.kill()
        child.wait()
        assert meter.read().since(before).seconds >= reported - TICKS
        parent.communicate()
        assert meter.read().since(before).seconds >= reported - TICKS


def test_an_excluded_process_does_not_count():
    child = subprocess.Popen([sys.executable, "-c", f"{BURN}input()"], **PIPES)
    with CpuMeter(exclude=[child.pid]) as meter, CpuMeter() as other:
        reported = float(child.stdout.readline())
        assert other.read().seconds - meter.read().seconds >= reported - TICKS
        child.communicate("\n")
