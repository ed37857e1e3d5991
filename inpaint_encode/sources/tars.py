"""Pairs in WebDataset tars: read by their headers here, and member by member in the workers, never unpacked.

A sample is what has one name up to the first dot, folders included: of ``a/042.jpg``, ``a/042.mask.png`` and
``a/042.json`` it is ``a/042``, wherever in the tar they are. Its image is the member with nothing, or
``--image-column``, between that and an image's suffix, its masks those with ``--mask-column`` there, with or without a
number; json and txt are carried as strings. Everything else is ignored.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from inpaint_encode.errors import UsageError
from inpaint_encode.schema import EXTRA_COLUMNS
from inpaint_encode.settings import Source, SourceAccess
from inpaint_encode.sources.found import IMAGE_SUFFIXES
from inpaint_encode.stores import storage
from inpaint_encode.stores.ranged_file import RangedFile

from . import locators
from .files import PairFiles
from .found import FoundPairs
from .random_masks import with_random_masks

__all__ = ["SAMPLE_NAME", "from_tars"]

SAMPLE_NAME = "__key__"
"""As a ``--key-column``: the sample's name alone, which must be unique over all tars then."""

_NAME = re.compile(r"^(?:\./)*(?P<sample>(?:.*/)?[^./]+)\.(?:(?P<role>[^/]*)\.)?(?P<suffix>[^./]+)$")
_TEXTS = ("json", "txt")
_TARS_AT_ONCE = 16
_BUFFER = 2**16
"""A request reads this much: small members and texts come many at once, and large members are passed over."""

_ROWS = pa.schema(
    [
        ("key", pa.string()),
        ("image_uri", pa.string()),
        ("mask_uri", pa.string()),
        ("mask_index", pa.int32()),
        ("image_version", pa.string()),
        ("mask_version", pa.string()),
        ("image_bytes", pa.int64()),
        *((name, pa.string()) for name in _TEXTS),
    ]
)


class _Member(NamedTuple):
    offset: int
    size: int
    uri: str


@dataclass
class _Sample:
    images: list[_Member] = field(default_factory=list)
    masks: dict[int, _Member] = field(default_factory=dict)
    """By their number; -1 is the one without."""
    texts: dict[str, str] = field(default_factory=dict)


class _Tar(NamedTuple):
    """What one tar holds."""

    pairs: pa.Table
    unpaired_images: list[str]
    unpaired_masks: list[str]
    ignored: int
    unreadable: list[str]
    bytes_listed: tuple[int, int]


def from_tars(source: Source, files: PairFiles, access: SourceAccess) -> FoundPairs:
    """Index the tars, some at a time, and return the pairs in their order.

    Raises:
        UsageError: a tar cannot be read, a sample has two images or a mask twice, two samples share a key, or there is
            no pair at all.
    """
    if source.key_column not in ("", SAMPLE_NAME):
        raise UsageError(f"--key-column {source.key_column}: of tars it can only be {SAMPLE_NAME}, the sample's name")
    shards = [uri.removeprefix(f"{files.folder}/").removesuffix(".tar") for uri in files.uris]
    prefixes = ["" if source.key_column else f"{shard}/" for shard in shards]
    with ThreadPoolExecutor(_TARS_AT_ONCE) as pool:
        tars = list(pool.map(lambda uri, prefix: _indexed(uri, prefix, source, access), files.uris, prefixes))
    table = pa.concat_tables([tar.pairs for tar in tars])
    if not table.num_rows:
        raise UsageError(_no_pairs(source, tars))
    texts = table.select([name for name in _TEXTS if table[name].null_count < table.num_rows])
    pairs = table.drop_columns(list(_TEXTS))
    pairs = pairs.append_column(EXTRA_COLUMNS, texts.to_struct_array()) if texts.num_columns else pairs
    pairs = with_random_masks(pairs, source) if source.random_masks else pairs
    _refuse_shared_keys(source, pairs)
    of_images, of_masks = zip(*(tar.bytes_listed for tar in tars), strict=True)
    return FoundPairs(
        pairs,
        unpaired_images=pa.array([uri for tar in tars for uri in tar.unpaired_images], pa.string()),
        unpaired_masks=pa.array([uri for tar in tars for uri in tar.unpaired_masks], pa.string()),
        ignored_files=sum(tar.ignored for tar in tars),
        unreadable=tuple(name for tar in tars for name in tar.unreadable),
        listed=files.listed,
        bytes_listed=(sum(of_images), sum(of_masks)),
    )


def _indexed(uri: str, prefix: str, source: Source, access: SourceAccess) -> _Tar:
    try:
        file = RangedFile(uri, access)
        samples, ignored, unreadable = _samples(uri, file, source)
    except tarfile.TarError as error:
        raise UsageError(f"--pairs {uri} is no tar, or is cut off or damaged: {error}") from error
    except OSError as error:
        raise UsageError(
            f"--pairs {uri} cannot be read: {error.strerror or error}; check the path and the credentials"
        ) from error
    whole = {name: sample for name, sample in samples.items() if sample.images and sample.masks}
    alone = [sample for name, sample in samples.items() if name not in whole]
    in_order = sorted(whole.items(), key=lambda item: item[1].images)
    masks = [mask for sample in whole.values() for mask in sample.masks.values() if mask not in sample.images]
    rows = [row for name, sample in in_order for row in _rows(prefix + name, sample, file.version)]
    return _Tar(
        pa.Table.from_pylist(rows, _ROWS),
        [image.uri for sample in alone for image in sample.images],
        [mask.uri for sample in alone for mask in sample.masks.values()],
        ignored,
        unreadable,
        (sum(sample.images[0].size for sample in whole.values()), sum(mask.size for mask in masks)),
    )


def _rows(key: str, sample: _Sample, version: str) -> Iterator[dict[str, Any]]:
    image = sample.images[0]
    for number, mask in sorted(sample.masks.items()):
        yield {
            "key": key if number < 0 else f"{key}/{number}",
            "image_uri": image.uri,
            "mask_uri": mask.uri,
            "mask_index": max(0, number),
            "image_version": version,
            "mask_version": version,
            "image_bytes": image.size,
            **sample.texts,
        }


def _samples(uri: str, file: RangedFile, source: Source) -> tuple[dict[str, _Sample], int, list[str]]:
    """The samples by name, how many files belong to none, and names that are no text."""
    samples: defaultdict[str, _Sample] = defaultdict(_Sample)
    ignored, unreadable = 0, []
    with tarfile.open(fileobj=io.BufferedReader(file, _BUFFER), mode="r:") as tar:
        for member in _members(tar):
            is_text = storage.is_text(member.name)
            unreadable += [] if is_text else [f"{uri}: {member.name!a}"]
            regular = is_text and member.isreg() and not member.issparse()
            if not (regular and _is_placed(uri, samples, tar, member, source)):
                ignored += 1
    if file.size % tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"{file.size:,} bytes are no whole number of blocks")
    for name, sample in samples.items():
        _complete(uri, name, sample, source)
    return samples, ignored, unreadable


def _is_placed(
    uri: str, samples: defaultdict[str, _Sample], tar: tarfile.TarFile, member: tarfile.TarInfo, source: Source
) -> bool:
    """Put the member into its sample, if it belongs to one."""
    named = _NAME.match(member.name)
    if not named:
        return False
    role, suffix = named["role"] or "", named["suffix"].lower()
    number = _mask_number(role, source) if suffix in IMAGE_SUFFIXES else None
    if suffix in _TEXTS and not role:
        _add_text(uri, samples[named["sample"]], suffix, tar, member)
    elif suffix in IMAGE_SUFFIXES and role in ("", source.image_column):
        samples[named["sample"]].images.append(_located(uri, member))
    elif number is not None:
        _add_mask(uri, samples[named["sample"]], number, _located(uri, member))
    else:
        return False
    return True


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """All but folders, also of archives that were put one behind the other; a hard link as the file that it is of.

    Raises:
        tarfile.ReadError: a header is damaged, or the archive has no end.
    """
    files: dict[str, tuple[int, int]] = {}
    while (member := tar.next()) is not None or _is_continued(tar):
        if member is None:
            continue
        tar.members.clear()  # type: ignore[attr-defined]  # which would hold them all
        if member.islnk() and member.linkname in files:
            member.offset_data, member.size = files[member.linkname]
            member.type = tarfile.REGTYPE
        elif member.isreg():
            files[member.name] = member.offset_data, member.size
        if not member.isdir():
            yield member


def _is_continued(tar: tarfile.TarFile) -> bool:
    """Go on to the archive behind the end of this one; tarfile takes a damaged header for an end, and a cut as well."""
    file, end = tar.fileobj, tar.offset  # type: ignore[attr-defined]
    file.seek(end)
    block = file.read(tarfile.BLOCKSIZE)
    if not block:
        raise tarfile.ReadError(f"it ends at byte {end:,} without the block of zeros that ends a tar")
    if any(block):
        raise tarfile.ReadError(f"the header at byte {end:,} is damaged")
    while block and not any(block):
        block = file.read(tarfile.BLOCKSIZE)
    tar.offset = file.tell() - len(block)  # type: ignore[attr-defined]
    return len(block) == tarfile.BLOCKSIZE


def _mask_number(role: str, source: Source) -> int | None:
    """-1 of a mask without a number; None if it is no mask."""
    found = re.fullmatch(re.escape(source.mask_column) + r"(\d{0,9})", role)
    return int(found[1] or -1) if found and not source.random_masks else None


def _located(uri: str, member: tarfile.TarInfo) -> _Member:
    where = locators.member(uri, member.name, member.offset_data, member.size)
    return _Member(member.offset_data, member.size, where)


def _add_text(uri: str, sample: _Sample, suffix: str, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    if suffix in sample.texts:
        raise UsageError(f"--pairs {uri}: two members are named {member.name}; leave one of them")
    sample.texts[suffix] = _text(uri, tar, member)


def _text(uri: str, tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = tar.extractfile(member)
    assert file is not None  # of a regular file there is one
    try:
        return file.read().decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"--pairs {uri}: {member.name} is not in UTF-8: {error}") from error


def _add_mask(uri: str, sample: _Sample, number: int, mask: _Member) -> None:
    if number in sample.masks:
        raise UsageError(f"--pairs {uri}: two masks are one of their sample: {sample.masks[number].uri} and {mask.uri}")
    sample.masks[number] = mask


def _complete(uri: str, name: str, sample: _Sample, source: Source) -> None:
    """Refuse a second image; without masks of its own the image stands for one, itself or drawn later."""
    if len(sample.images) > 1:
        rivals = " and ".join(image.uri for image in sample.images[:3])
        raise UsageError(f"--pairs {uri}: sample {name} has more than one image: {rivals}; leave one of each")
    if sample.images and (source.random_masks or source.is_own_mask):
        sample.masks = {-1: sample.images[0]}


def _refuse_shared_keys(source: Source, pairs: pa.Table) -> None:
    if pc.count_distinct(pairs["key"]).as_py() == pairs.num_rows:
        return
    counts = pairs.group_by("key").aggregate([("key", "count")])
    shared = counts.filter(pc.greater(counts["key_count"], 1))["key"]
    rivals = pairs.filter(pc.equal(pairs["key"], shared[0]))["image_uri"].unique().to_pylist()
    advice = f"leave out --key-column {SAMPLE_NAME}" if source.key_column else "rename all but one sample"
    raise UsageError(
        f"--pairs {source.pairs}: {len(shared):,} keys are shared, the first, {shared[0]}, by "
        f"{' and '.join(sorted(rivals)[:3])}; {advice}"
    )


def _no_pairs(source: Source, tars: list[_Tar]) -> str:
    images = sum(len(tar.unpaired_images) for tar in tars)
    masks = sum(len(tar.unpaired_masks) for tar in tars)
    return (
        f"no image has a mask: --pairs {source.pairs} holds {len(tars):,} tars with {images:,} images without a mask, "
        f"{masks:,} masks without an image and {sum(tar.ignored for tar in tars):,} other files; the mask of a.jpg is "
        f"named a.{source.mask_column}.png"
    )
