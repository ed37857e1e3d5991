"""Circuit breaker: decides whether an error is the store's (the job stops) or one object's (the pair is rejected)."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from inpaint_encode.sources import PairReader, store_of
from inpaint_encode.stores import storage

_PROBES = 4
"""Other objects of a bucket to request before it counts as failing."""

_MAX_UNANSWERED = 3
"""Objects of a web server without any answer before the rest is not requested."""


@dataclass
class _Store:
    last_good: str | None = None
    """The last object that was read."""
    answered: bool = False
    """Whether any request was answered, if only with "not found"."""
    unanswered: int = 0
    denied: str | None = None
    """The message of an object that was denied."""
    failure: str | None = None


@dataclass
class CircuitBreaker:
    """Tracks the outcomes of a chunk's reads per bucket and host; thread-safe.

    Args:
        reader: sends the probes.
        others: returns planned objects outside the chunk, to probe a store with.
        retried: whether the chunk's pairs were rejected or encoded before. If so, a store that can be listed is not
            failing, whatever it denies: the retried pairs may all be denied ones.
    """

    reader: PairReader
    others: Callable[[], Iterable[str]] = tuple
    retried: bool = False
    _stores: defaultdict[str, _Store] = field(default_factory=lambda: defaultdict(_Store))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def failure(self) -> str | None:
        """Why the first failing store fails; probes a store that denied all its objects."""
        for name, store in self._stores.items():
            if store.denied and not store.answered and not store.failure and self._fails(name):
                store.failure = f"the store denies every request; {store.denied}"
        return next((store.failure for store in self._stores.values() if store.failure), None)

    def reason_to_skip(self, uri: str) -> str | None:
        """Return why ``uri`` should not be requested, or None."""
        name = store_of(uri)
        store = self._stores[name]
        if not store.answered and store.unanswered >= _MAX_UNANSWERED and not name.startswith(("s3://", "gs://")):
            return f"{uri} was not requested: {name} has not answered any of {store.unanswered} requests"
        return store.failure

    def record_answer(self, uri: str, *, read: bool) -> None:
        """Record that the store answered; ``read`` if the answer was the object."""
        store = self._stores[store_of(uri)]
        store.answered = True
        store.last_good = uri if read else store.last_good

    def record_denied(self, uri: str, message: str) -> None:
        """Record a denied object. If an object that was read before is denied too, the credentials are at fault."""
        store = self._stores[store_of(uri)]
        store.denied = message
        try:
            if store.last_good:
                self.reader.probe(store.last_good)
        except PermissionError:
            store.failure = f"the store denies access to objects that it served before; {message}"
        except OSError:
            pass  # tells nothing about this object

    def record_unanswered(self, uri: str, message: str) -> None:
        """Record an object without an answer. If other objects get none either, the store is failing."""
        name = store_of(uri)
        store = self._stores[name]
        store.unanswered += 1
        try:
            if store.last_good:
                self.reader.probe(store.last_good)
                return
        except storage.Unavailable:
            store.failure = f"the store does not answer; {message}"
            return
        except OSError:
            return
        with self._lock:
            if not store.answered and not store.failure and self._fails(name):
                store.failure = f"the store does not answer; {message}"

    def _fails(self, name: str) -> bool:
        """Whether a bucket serves no other planned object and, if there is none to ask for, cannot be listed."""
        if not name.startswith(("s3://", "gs://")):
            return False
        planned = [other for other in self.others() if store_of(other) == name]
        probed = planned[:: max(1, len(planned) // _PROBES)][:_PROBES]
        for other in probed:
            try:
                self.reader.probe(other)
            except storage.Unavailable:
                break
            except PermissionError:
                continue
            except OSError:
                return False
            return False
        if probed and not self.retried:
            return True
        try:
            self.reader.probe_listing(name)
        except OSError:
            return True
        return False
