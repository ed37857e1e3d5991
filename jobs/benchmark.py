"""Measure this machine: ``python jobs/benchmark.py``, or as a Ray job on a node with a GPU."""

from inpaint_encode.bench.run import app

if __name__ == "__main__":
    app()
