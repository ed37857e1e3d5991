"""A worker passes few functions of the package between the bucket and the Parquet file."""

import re
import subprocess
import sys


def test_one_pair_passes_few_functions():
    """In a process of its own, because caches that other tests filled would hide functions."""
    command = [sys.executable, "-m", "tests.worker_functions"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    counts = {name: int(count) for name, count in re.findall(r"^(.+): (\d+) functions in", printed, re.MULTILINE)}
    assert counts.keys() == {"one pair", "the demo's pairs"}, printed
    assert counts["one pair"] <= 136, printed
    assert counts["the demo's pairs"] <= 152, printed
