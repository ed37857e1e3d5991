"""Signed URLs of a list: what is stored is the URL without its signature, and a run fetches with the signed one.

The signature of an object changes whenever the list is signed again, and grants access to its readers. So plan,
rows, keys and logs have the URL without it: freshly signed URLs of one object are the same pair. Other parameters of
the query stay: ``?id=1`` and ``?id=2`` are two objects.

`Signatures` keeps the signed URLs that a run has read in a temporary file of the driver, which only this user can read.
A worker asks for those of its chunk, through Ray's memory; nothing is written to the output.
"""

from __future__ import annotations

import re
import sqlite3
import tempfile
import threading
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

_BY_PREFIX = ("x-amz-", "x-goog-", "x-oss-")
_AZURE = (
    *("sig", "sv", "se", "sp", "sr", "st", "spr", "skoid", "sktid", "skt", "ske", "sks", "skv", "ss", "srt", "sip"),
    *("si", "sdd", "saoid", "suoid", "scid", "ses", "spk", "epk", "srk", "erk", "tn"),
)
_IDS = ("key-pair-id", "awsaccesskeyid", "googleaccessid", "ossaccesskeyid")
"""Parameters that tell a signature of CloudFront, or an older one of S3, GCS and OSS, from a parameter of that name."""
_SIGNED_BY_ID = (*_IDS, "signature", "expires", "policy", "cloudfront-hash-algorithm", "security-token")

_MAYBE_SIGNED = r"(?i)https?://\S*(?:[?&]|amp;|u0026)(?:x-(?:amz|goog|oss)-[\w-]+|sig|signature)="
_SEPARATOR = re.compile(r"&amp;|&|\\u0026")
"""Between parameters; the longer ones are how HTML and JSON write it."""
_URL = re.compile(r"https?://(?:[^\s\"'<>\\]|\\u0026)+", re.IGNORECASE)

_AT_ONCE = 500
"""Values of one query; SQLite allows 999."""


def unsigned(url: str) -> str:
    """Return a URL without the parameters of its signature; the others keep their order."""
    start, mark, rest = url.partition("?")
    query, hash_mark, fragment = rest.partition("#")
    parts = _SEPARATOR.split(query) if mark else []
    names = [unquote(part.partition("=")[0]).lower() for part in parts]
    removed: set[str] = {name for name in names if name.startswith(_BY_PREFIX)}
    if "sig" in names and not {"sv", "se"}.isdisjoint(names):
        removed.update(_AZURE)
    if "signature" in names and not set(_IDS).isdisjoint(names):
        removed.update(_SIGNED_BY_ID)
    if removed.isdisjoint(names):
        return url
    kept = "&".join(part for part, name in zip(parts, names, strict=True) if name not in removed)
    return f"{start}{mark if kept else ''}{kept}{hash_mark}{fragment}"


def are_signed(texts: pa.ChunkedArray | pa.Array) -> bool:
    """Return whether a text has a URL that may be signed."""
    return bool(pc.any(pc.match_substring_regex(texts, _MAYBE_SIGNED)).as_py())


def without_signatures(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return values in which no URL has a signature: texts, such as captions or JSON, and lists and structs of them."""
    return pa.chunked_array(map(_without_signatures, values.chunks), values.type)


def _without_signatures(values: pa.Array) -> pa.Array:
    type_ = values.type
    if pa.types.is_string(type_) or pa.types.is_large_string(type_):
        if not are_signed(values):
            return values
        texts = values.to_pylist()
        return pa.array([text and _URL.sub(lambda url: unsigned(url[0]), text) for text in texts], type_)
    if pa.types.is_dictionary(type_):
        return pa.DictionaryArray.from_arrays(values.indices, _without_signatures(values.dictionary))
    if pa.types.is_struct(type_):
        children = [_without_signatures(values.field(at)) for at in range(type_.num_fields)]
        return pa.StructArray.from_arrays(children, fields=list(type_), mask=values.is_null())
    if pa.types.is_nested(type_) and type_.num_fields == 1:  # a list or a map; its own buffers stay as they are
        own = values.buffers()[: 1 if pa.types.is_fixed_size_list(type_) else 2]
        children = [_without_signatures(values.values)]
        return pa.Array.from_buffers(type_, len(values), own, offset=values.offset, children=children)
    return values


class Signatures:
    """The signed URLs that this run has read: the last one of each object. Threads may share it."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="inpaint-encode-signed-")  # of mode 0700
        self.path = f"{self._folder.name}/signed.sqlite"
        """Of the file that `find_signed` reads; it exists when a signed URL has been added."""
        self._lock = threading.Lock()

    def add(self, urls: pa.ChunkedArray) -> pa.ChunkedArray:
        """Keep the signed ones of the URLs of a list, and return all of them without signatures."""
        if not are_signed(urls):
            return urls
        signed = urls.to_pylist()
        plain = [unsigned(url) for url in signed]
        pairs = [(old, new) for old, new in zip(plain, signed, strict=True) if old != new]
        with self._lock, closing(sqlite3.connect(self.path, timeout=60)) as database, database:
            database.execute("CREATE TABLE IF NOT EXISTS signed (plain TEXT PRIMARY KEY, url TEXT) WITHOUT ROWID")
            database.executemany("INSERT OR REPLACE INTO signed VALUES (?, ?)", pairs)
        return pa.chunked_array([pa.array(plain, pa.string())])

    def find(self, urls: Iterable[str]) -> dict[str, str]:
        """Return the signed forms of the URLs that have one."""
        return find_signed(self.path, urls)


def find_signed(path: str, urls: Iterable[str]) -> dict[str, str]:
    """Return the signed forms of the URLs that have one in the file of a `Signatures`, on its own machine."""
    wanted = [url for url in dict.fromkeys(urls) if url.startswith(("http://", "https://"))]
    if not wanted or not Path(path).exists():
        return {}
    found: dict[str, str] = {}
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=60)) as database:
        for start in range(0, len(wanted), _AT_ONCE):
            some = wanted[start : start + _AT_ONCE]
            marks = ",".join("?" * len(some))
            found |= dict(database.execute(f"SELECT plain, url FROM signed WHERE plain IN ({marks})", some))  # noqa: S608
    return found
