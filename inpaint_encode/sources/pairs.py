"""What all sources share: `PairSource` and its batches, the files that ``--pairs`` names, and errors of reading."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from PIL import features

from inpaint_encode.errors import UsageError
from inpaint_encode.stores import storage
from inpaint_encode.stores.base import Access, Changed

from .signatures import Signatures

_PREFIX_SUFFIXES = ("parquet", "tar")
"""Formats whose files ``--pairs`` may give together, as one prefix."""
_COMPRESSED_TAR = re.compile(r"\.(?:tar\.\w+|tgz|tbz2?|txz)$")
_AVIF = {"avif"} if features.check("avif") else set()

IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", *_AVIF})
"""File name suffixes, in lower case, of images and masks. Files with another suffix are ignored. ``avif`` is included
if Pillow can decode it."""

BATCH_PAIRS = 65_536
"""Largest number of pairs in a `PairBatch`; a single image may have more random masks."""

BATCH_BYTES = 2**28
"""Bytes of a batch's strings from which it ends early: an Arrow array of strings must be smaller than 2 GiB."""

MAX_EXAMPLES = 1_000
"""Names that `LeftOut` keeps of each kind; it counts all of them."""


class Slice(NamedTuple):
    """A range of the lines of one file of a source. In a tar, every pair is a line."""

    file: str
    """URI."""
    version: str
    """Version of the file, and of the options that select its pairs; if it is another one, the file is read again."""
    start: int
    end: int
    """Numbers of the first line, and of the line after the last; the file's first line is 0."""
    is_last: bool
    """Whether the file ends here."""
    left_out: tuple[int, int, int] = (0, 0, 0)
    """Unpaired images, unpaired masks and ignored files of the slice."""
    repeated: int = 0
    """Lines of the slice that the plan does not have, because an earlier line has the same contents."""


class PairBatch(NamedTuple):
    """Some pairs of a source, in the order in which they should be encoded."""

    pairs: pa.Table
    """`schema.SOURCE_PAIRS`, and `schema.EXTRA_COLUMNS` if the source has columns of its own. Keys may repeat. Pairs of
    one image need not be neighbors."""
    slices: tuple[Slice, ...] = ()
    """Where the pairs are from, in order; ``line`` counts their lines. Empty if the source is a listing."""


@dataclass
class LeftOut:
    """Files of a source that belong to no pair, counted while the source is read."""

    unpaired_images: int = 0
    unpaired_masks: int = 0
    ignored_files: int = 0
    """Files without an image's suffix."""
    unpaired_image_uris: list[str] = field(default_factory=list)
    """The first `MAX_EXAMPLES` of them; so are the other two."""
    unpaired_mask_uris: list[str] = field(default_factory=list)
    unreadable_names: list[str] = field(default_factory=list)
    """Escaped names of ignored files whose names are not valid in a URI."""


class PairSource(ABC):
    """A source of pairs. Opening one reads little; `batches` reads the rest, in bounded memory."""

    extra_columns: list[pa.Field]
    """The fields of `schema.EXTRA_COLUMNS`; empty if the source has no columns of its own."""
    numbers_masks: bool = False
    """Whether a key names an image, so that the keys of its second and further masks must get a number. If False, a key
    names a pair."""
    unchanged: frozenset[str] = frozenset()
    """Files whose ``known`` lines are skipped; set before `batches` yields its first batch."""
    signatures: Signatures | None = None
    """Of a list: the signed URLs that were read so far. The pairs have their URLs without signatures."""
    left_out: LeftOut
    objects_listed: int
    """Objects in the listings so far."""
    image_row_groups: int = 0
    """Row groups of the Parquet files that hold the images, so far."""
    image_and_mask_bytes: tuple[int, int] | None = None
    """Total bytes of the images that have a mask, each counted once, and of their masks, once `batches` has ended. None
    if the source does not know them."""

    def __init__(self, objects_listed: int = 0) -> None:
        self.left_out = LeftOut()
        self.objects_listed = objects_listed

    @property
    def is_signed(self) -> bool:
        """Whether the source has signed URLs, so that `batches` must be read before planned pairs can be fetched."""
        return False

    @abstractmethod
    def batches(self, known: Mapping[str, Slice]) -> Generator[PairBatch, None, None]:
        """Yield all pairs, without the lines that are ``known``.

        Args:
            known: the last slice of each file that is in the plan, by URI. Its lines, and all before them, are skipped
                if the file still has that version. Empty: everything is read.

        Raises:
            UsageError: something cannot be read, or a value is not valid; pairs before it have been yielded.
        """


class PairFiles(NamedTuple):
    """The files that ``--pairs`` names: all have one suffix, and are sorted by name."""

    suffix: str
    """``parquet``, ``csv``, ``jsonl`` or ``tar``."""
    folder: str
    """Relative URIs in the files are relative to this folder, and so are the files' names in keys."""
    uris: list[str]
    objects_listed: int
    """Number of objects that were listed to find the files; 0 if ``--pairs`` names one file."""


def find_pair_files(pairs: str, access: Access, suffixes: Collection[str]) -> PairFiles:
    """Return the one file that ``pairs`` names, or list the prefix. Names that begin with ``_`` or a dot are skipped.

    Args:
        pairs: value of ``--pairs``.
        access: how to read the store.
        suffixes: of all formats that can be read.

    Raises:
        UsageError: the prefix does not exist, or has no file of a known format, or has files of two formats.
    """
    uri = normalize_uri("--pairs", pairs)
    _check_not_compressed(uri, uri)
    suffix = uri.rpartition(".")[2]
    if suffix in suffixes:
        return PairFiles(suffix, uri.rpartition("/")[0], [uri], 0)
    *extensions, last = [f".{name}" for name in suffixes]
    supported = f"{', '.join(extensions)} or {last}"
    if "://" not in uri and Path(uri).is_file():
        raise UsageError(f"--pairs {uri}: this file has an unsupported extension; use {supported}")
    advice = f"check the spelling; a single file must end in {supported}"
    found: dict[str, list[str]] = {name: [] for name in _PREFIX_SUFFIXES}
    objects_listed, compressed = 0, ""
    for page in list_pages("--pairs", uri, access, advice):
        objects_listed += len(page.paths)
        for path in page.paths:
            suffix = path.rpartition(".")[2]
            if path.rpartition("/")[2][0] in "_.":
                continue
            if suffix in found:
                found[suffix].append(f"{uri}/{path}")
            elif not compressed and _COMPRESSED_TAR.search(path):
                compressed = path
    if len(formats := [name for name, files in found.items() if files]) > 1:
        raise UsageError(f"--pairs {uri} has both .parquet and .tar files; give a prefix with files of one format")
    if not formats:
        _check_not_compressed(uri, compressed)
        raise UsageError(
            f"--pairs {uri} contains no .parquet and no .tar files; give a prefix with files of either format, "
            f"or one file that ends in {supported}"
        )
    return PairFiles(formats[0], uri, sorted(found[formats[0]]), objects_listed)


def _check_not_compressed(uri: str, file: str) -> None:
    if _COMPRESSED_TAR.search(file):
        raise UsageError(
            f"--pairs {uri}: {file} is a compressed tar, whose members cannot be read one by one; decompress it to a "
            ".tar file"
        )


def check_access(access: Access, *uris: pa.ChunkedArray) -> None:
    """Raise UsageError if there are options for buckets, but no URI of a bucket."""
    given = {name: value for name, value in asdict(access).items() if value and name != "prefixes"}
    options = [f"--{name.replace('_', '-')}" for name in given]
    if options and not any(pc.any(pc.match_substring_regex(one, "^(?:s3|gs)://")).as_py() for one in uris):
        raise UsageError(
            f"only s3:// and gs:// accept {' and '.join(options)}, and the source has no such URI; leave this out"
        )


def normalize_uri(option: str, uri: str) -> str:
    """Return `storage.normalize_uri` of an option's value; raise UsageError if the URI is not valid."""
    try:
        return storage.normalize_uri(uri, storage.READABLE)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


def list_pages(
    option: str, prefix: str, access: Access, advice: str = "check the spelling"
) -> Iterator[storage.Listed]:
    """Yield the pages of `storage.list_objects`.

    Raises:
        UsageError: the prefix cannot be listed, or no object is below it. ``option`` and ``advice`` are for the error.
    """
    if prefix.startswith("http"):
        raise UsageError(f"{option} {prefix}: HTTP servers cannot be listed; give a list of pairs with --pairs")
    empty = True
    try:
        for page in storage.list_objects(prefix, access):
            empty = empty and not page.paths and not page.unreadable
            yield page
    except OSError as error:
        raise UsageError(
            f"{option} {prefix} cannot be listed: {error.strerror or error}; check the prefix and the credentials with "
            f"`inpaint-encode doctor {prefix}`"
        ) from error
    if empty:
        if "://" in prefix:
            reason = "the bucket exists, but nothing in it starts with this prefix"
        elif Path(prefix).is_dir():
            reason = "the folder is empty"
        else:
            reason = "this is a file, not a folder" if Path(prefix).exists() else "there is no such folder"
        raise UsageError(f"{option} {prefix}: {reason}; {advice}")


@contextmanager
def translate_read_errors(uri: str) -> Iterator[None]:
    """Raise UsageError if the store cannot read a file of ``--pairs``, or if the file has changed."""
    try:
        yield
    except Changed as error:
        raise UsageError(f"--pairs {uri} was replaced while it was read; run the command again") from error
    except OSError as error:
        raise UsageError(
            f"--pairs {uri} cannot be read: {error.strerror or error}; check the path and the credentials"
        ) from error
