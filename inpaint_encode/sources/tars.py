"""Pairs in WebDataset tars. Only headers are read here; workers read the members by ranges. Nothing is unpacked.

A sample is all members with the same name up to the first dot, folders included: ``a/042.jpg``, ``a/042.mask.png`` and
``a/042.json`` belong to sample ``a/042``, wherever they are in the tar. The image is the member with nothing, or with
``--image-column``, between the sample's name and an image's suffix. A mask has ``--mask-column`` there, and may have a
number after it. json and txt become string columns. All other members are ignored.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa

from inpaint_encode.errors import UsageError
from inpaint_encode.schema import EXTRA_COLUMNS, PAIR_FIELDS
from inpaint_encode.settings import Source
from inpaint_encode.stores import storage
from inpaint_encode.stores.base import Access
from inpaint_encode.stores.ranged_file import RangedFile

from .pairs import IMAGE_SUFFIXES, FoundPairs, PairFiles, check_unique_keys
from .part_uris import member_uri
from .random_masks import with_random_masks

SAMPLE_NAME = "__key__"
"""As ``--key-column``: the sample's name alone is the key, which must then be unique in all tars."""

_MEMBER_NAME = re.compile(r"^(?:\./)*(?P<sample>(?:.*/)?[^./]+)\.(?:(?P<role>[^/]*)\.)?(?P<suffix>[^./]+)$")
_TEXTS = ("json", "txt")
_CONCURRENT_TARS = 16
_BUFFER_BYTES = 2**16
"""Bytes of one request: one reads many small members and texts, and the data of large members is skipped."""

_ROWS = pa.schema(
    [
        *PAIR_FIELDS,
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
    """By number; -1: the mask without a number."""
    texts: dict[str, str] = field(default_factory=dict)


def from_tars(source: Source, files: PairFiles, access: Access) -> FoundPairs:
    """Index the tars, several at a time; return the pairs in the order of the tars.

    Raises:
        UsageError: a tar cannot be read, a sample has two images or the same mask twice, two samples have the same key,
            or there is no pair.
    """
    if source.key_column not in ("", SAMPLE_NAME):
        raise UsageError(f"--key-column {source.key_column}: with tars use {SAMPLE_NAME} or leave out the option")
    shards = [uri.removeprefix(f"{files.folder}/").removesuffix(".tar") for uri in files.uris]
    prefixes = ["" if source.key_column else f"{shard}/" for shard in shards]
    with ThreadPoolExecutor(_CONCURRENT_TARS) as pool:
        tars = list(pool.map(lambda uri, prefix: _index_tar(uri, prefix, source, access), files.uris, prefixes))
    sizes = [tar.image_and_mask_bytes or (0, 0) for tar in tars]
    found = FoundPairs(
        pa.concat_tables([tar.pairs for tar in tars]),
        unpaired_images=pa.concat_arrays([tar.unpaired_images for tar in tars]),
        unpaired_masks=pa.concat_arrays([tar.unpaired_masks for tar in tars]),
        ignored_files=sum(tar.ignored_files for tar in tars),
        unreadable_names=tuple(name for tar in tars for name in tar.unreadable_names),
        objects_listed=files.objects_listed,
        image_and_mask_bytes=(sum(images for images, _ in sizes), sum(masks for _, masks in sizes)),
    )
    if not found.pairs.num_rows:
        raise UsageError(
            f"--pairs {source.pairs}: no image has a mask; the mask of a.jpg must be named a.{source.mask_column}.png "
            f"(tars: {len(tars):,}; images without a mask: {len(found.unpaired_images):,}; masks without an image: "
            f"{len(found.unpaired_masks):,}; other files: {found.ignored_files:,})"
        )
    texts = found.pairs.select([name for name in _TEXTS if found.pairs[name].null_count < found.pairs.num_rows])
    pairs = found.pairs.drop_columns(list(_TEXTS))
    pairs = pairs.append_column(EXTRA_COLUMNS, texts.to_struct_array()) if texts.num_columns else pairs
    pairs = with_random_masks(pairs, source) if source.random_masks else pairs
    advice = f"leave out --key-column {SAMPLE_NAME}" if source.key_column else "rename all but one sample"
    check_unique_keys(f"--pairs {source.pairs}", pairs, lambda some: some["image_uri"], advice)
    return found._replace(pairs=pairs)


def _index_tar(uri: str, key_prefix: str, source: Source, access: Access) -> FoundPairs:
    """Return the pairs of one tar, with the texts in columns of their own."""
    try:
        file = RangedFile(uri, access)
        samples, ignored, unreadable_names = _read_samples(uri, file, source)
    except tarfile.TarError as error:
        raise UsageError(
            f"--pairs {uri} is not a tar, or is truncated or damaged; write it again, without compression ({error})"
        ) from error
    except OSError as error:
        raise UsageError(
            f"--pairs {uri} cannot be read: {error.strerror or error}; check the path and the credentials"
        ) from error
    paired = [(name, sample) for name, sample in samples.items() if sample.images and sample.masks]
    alone = [sample for sample in samples.values() if not (sample.images and sample.masks)]
    masks = [mask for _, sample in paired for mask in sample.masks.values() if mask not in sample.images]
    paired.sort(key=lambda item: item[1].images)
    rows = [
        {
            "key": f"{key_prefix}{name}" if number < 0 else f"{key_prefix}{name}/{number}",
            "image_uri": sample.images[0].uri,
            "mask_uri": mask.uri,
            "mask_index": max(0, number),
            "image_version": file.version,
            "mask_version": file.version,
            "image_bytes": sample.images[0].size,
            **sample.texts,
        }
        for name, sample in paired
        for number, mask in sorted(sample.masks.items())
    ]
    return FoundPairs(
        pa.Table.from_pylist(rows, _ROWS),
        unpaired_images=pa.array([image.uri for sample in alone for image in sample.images], pa.string()),
        unpaired_masks=pa.array([mask.uri for sample in alone for mask in sample.masks.values()], pa.string()),
        ignored_files=ignored,
        unreadable_names=tuple(unreadable_names),
        image_and_mask_bytes=(sum(sample.images[0].size for _, sample in paired), sum(mask.size for mask in masks)),
    )


def _read_samples(uri: str, file: RangedFile, source: Source) -> tuple[dict[str, _Sample], int, list[str]]:
    """Return the samples by name, the number of members that belong to no sample, and names that are not UTF-8."""
    samples: defaultdict[str, _Sample] = defaultdict(_Sample)
    ignored, unreadable_names = 0, []
    with tarfile.open(fileobj=io.BufferedReader(file, _BUFFER_BYTES), mode="r:") as tar:
        for member in _members(tar):
            if not storage.is_utf8(member.name):
                unreadable_names.append(f"{uri}: {member.name!a}")
                ignored += 1
            elif not member.isreg() or member.issparse() or not _add_member(uri, samples, tar, member, source):
                ignored += 1
    if file.size % tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"its size of {file.size:,} bytes is not a multiple of {tarfile.BLOCKSIZE}")
    for name, sample in samples.items():
        if len(sample.images) > 1:
            rivals = " and ".join(image.uri for image in sample.images[:3])
            raise UsageError(f"--pairs {uri}: sample {name} has several images: {rivals}; remove all but one")
        if sample.images and (source.random_masks or source.is_own_mask):
            sample.masks = {-1: sample.images[0]}  # random masks replace it later
    return samples, ignored, unreadable_names


def _add_member(
    uri: str, samples: defaultdict[str, _Sample], tar: tarfile.TarFile, member: tarfile.TarInfo, source: Source
) -> bool:
    """Add an image, a mask or a text to its sample; return False for any other member."""
    if not (name := _MEMBER_NAME.match(member.name)):
        return False
    role, suffix, mask_role = name["role"] or "", name["suffix"].lower(), rf"{re.escape(source.mask_column)}(\d{{0,9}})"
    part = _Member(member.offset_data, member.size, member_uri(uri, member.name, member.offset_data, member.size))
    if suffix in _TEXTS and not role:
        sample = samples[name["sample"]]
        if suffix in sample.texts:
            raise UsageError(f"--pairs {uri}: two members are named {member.name}; remove one of them")
        text = tar.extractfile(member)
        assert text is not None  # a regular file has data
        try:
            sample.texts[suffix] = text.read().decode()
        except UnicodeDecodeError as error:
            raise UsageError(f"--pairs {uri}: {member.name} is not UTF-8; encode it as UTF-8 ({error})") from error
    elif suffix in IMAGE_SUFFIXES and role in ("", source.image_column):
        samples[name["sample"]].images.append(part)
    elif suffix in IMAGE_SUFFIXES and not source.random_masks and (mask := re.fullmatch(mask_role, role)):
        masks, number = samples[name["sample"]].masks, int(mask[1] or -1)
        if number in masks:
            raise UsageError(
                f"--pairs {uri}: two masks have the same sample and number: {masks[number].uri} and {part.uri}; remove "
                "one of them"
            )
        masks[number] = part
    else:
        return False
    return True


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield all members except folders, also those of a tar appended to this one; a hard link as the file it links to.

    Raises:
        tarfile.ReadError: a header is damaged, or the end of the tar is missing.
    """
    files: dict[str, tuple[int, int]] = {}
    while (member := tar.next()) is not None or _open_appended(tar):
        if member is None:
            continue
        tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep all members in memory
        if member.islnk() and member.linkname in files:
            member.offset_data, member.size = files[member.linkname]
            member.type = tarfile.REGTYPE
        elif member.isreg():
            files[member.name] = member.offset_data, member.size
        if not member.isdir():
            yield member


def _open_appended(tar: tarfile.TarFile) -> bool:
    """Move to the tar behind the end of this one; return False at the end of the file.

    For tarfile a damaged header and a cut are an end too, so both are checked here.
    """
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
