"""Tells a store that is at fault as such, which ends the job, from objects that are, which are rejected."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from inpaint_encode.sources import PairReader, store_of
from inpaint_encode.stores import storage

__all__ = ["Stores"]

_PROBES = 4
"""Other objects of a store that are asked for before it is said to be at fault."""
_SILENT = 3
"""Objects of a web server that must have got no answer, and none an answer, before no more is waited for."""


@dataclass
class _Store:
    last_good: str | None = None
    answered: bool = False
    """It has told something of an object, if only that it is not there."""
    unanswered: int = 0
    refused: str | None = None
    """An object that it did not allow, and what it said."""
    down: str | None = None


class Stores:
    """What a chunk's reads say of each bucket and each host; threads may share it.

    Args:
        reader: asks them again.
        others: objects that are planned beside the chunk's, as those to ask a store for.
        known: whether the chunk's pairs have been rejected or encoded before. Then a store that lists its objects is
            not at fault, whatever it refuses: pairs that are tried again may all be such.
    """

    def __init__(self, reader: PairReader, others: Callable[[], Iterable[str]], *, known: bool) -> None:
        self._reader, self._others, self._known = reader, others, known
        self._stores: defaultdict[str, _Store] = defaultdict(_Store)
        self._lock = threading.Lock()

    @property
    def fault(self) -> str | None:
        """Of the first store that is at fault, what is; a store that allowed none of its objects is asked now."""
        for name, store in self._stores.items():
            if store.refused and not store.answered and not store.down and self._is_at_fault(name):
                store.down = f"the store allows nothing; {store.refused}"
        downs = [store.down for name, store in self._stores.items() if store.down]
        return downs[0] if downs else None

    def give_up(self, uri: str) -> str | None:
        """Why ``uri`` need not be asked for."""
        store = self._stores[store_of(uri)]
        if _is_web(uri) and not store.answered and store.unanswered >= _SILENT:
            return f"{uri} was not asked for: {store_of(uri)} has answered none of {store.unanswered} requests"
        return store.down

    def answered(self, uri: str, *, good: bool) -> None:
        """The store has told something of an object, ``good`` or not."""
        store = self._stores[store_of(uri)]
        store.answered = True
        store.last_good = uri if good else store.last_good

    def refused(self, uri: str, message: str) -> None:
        """If an object that was allowed before is not any more, it is the credentials, not the object."""
        store = self._stores[store_of(uri)]
        store.refused = message
        try:
            if store.last_good:
                self._reader.probe(store.last_good)
        except PermissionError:
            store.down = f"the store allows nothing any more; {message}"
        except OSError:
            pass  # says nothing about this object

    def unanswered(self, uri: str, message: str) -> None:
        """If others get no answer either, waiting for the rest is in vain."""
        name = store_of(uri)
        store = self._stores[name]
        store.unanswered += 1
        try:
            if store.last_good:
                self._reader.probe(store.last_good)
                return
        except storage.Unavailable:
            store.down = f"the store does not answer; {message}"
            return
        except OSError:
            return
        with self._lock:
            if not store.answered and not store.down and self._is_at_fault(name):
                store.down = f"the store does not answer; {message}"

    def _is_at_fault(self, name: str) -> bool:
        """Whether a bucket serves no other object of the plan either, or, where none tells, lists nothing."""
        if not name.startswith(("s3://", "gs://")):
            return False
        mine = [other for other in self._others() if store_of(other) == name]
        asked = mine[:: max(1, len(mine) // _PROBES)][:_PROBES]
        for other in asked:
            try:
                self._reader.probe(other)
            except storage.Unavailable:
                break
            except PermissionError:
                continue
            except OSError:
                return False
            return False
        return (bool(asked) and not self._known) or not self._lists(name)

    def _lists(self, name: str) -> bool:
        try:
            self._reader.probe_listing(name)
        except OSError:
            return False
        return True


def _is_web(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))
