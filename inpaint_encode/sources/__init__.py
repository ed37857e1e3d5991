"""Where pairs come from: prefixes that are listed, or a manifest that names them; one table of pairs either way.

Everything stays in Arrow columns: a Python object for each of a hundred million keys would not fit.
"""

from __future__ import annotations

from inpaint_encode.settings import Source

from .found import FoundPairs
from .manifest import from_manifest
from .prefixes import from_prefixes

__all__ = ["FoundPairs", "find_pairs"]


def find_pairs(source: Source) -> FoundPairs:
    """Read the manifest, or list the prefixes, and return every pair that they make.

    Raises:
        UsageError: something cannot be read, two files or lines claim one key, or there is no pair at all.
    """
    return from_manifest(source) if source.pairs else from_prefixes(source)
