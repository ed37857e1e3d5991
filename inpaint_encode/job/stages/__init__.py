"""What Ray calls, a chunk at a time: fetch and decode in tasks, encode in actors, commit in tasks.

Each stage takes one Ray row, a folded chunk, and gives one. All are safe to run twice: a chunk's rows depend on
the chunk alone, and its commit never replaces a decision. A pair that fails keeps its place, with its ``error``.
A fault that is no pair's own (a store that answers nobody, a disk that is full) travels on as ``fatal``.
"""

from .commit import commit
from .encode import CALLS_AT_ONCE, Encoder
from .fetch import fetch_and_decode

__all__ = ["CALLS_AT_ONCE", "Encoder", "commit", "fetch_and_decode"]
