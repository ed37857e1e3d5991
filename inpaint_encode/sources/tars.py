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
from array import array
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from inpaint_encode.errors import UsageError
from inpaint_encode.schema import EXTRA_COLUMNS, SOURCE_PAIRS
from inpaint_encode.settings import Source
from inpaint_encode.stores import storage
from inpaint_encode.stores.base import Access
from inpaint_encode.stores.pool import map_concurrently
from inpaint_encode.stores.ranged_file import RangedFile

from . import pairs
from .batches import Piece, find_unchanged, in_batches
from .pairs import (
    IMAGE_SUFFIXES,
    MAX_EXAMPLES,
    LeftOut,
    PairBatch,
    PairFiles,
    PairSource,
    Slice,
    check_access,
    translate_read_errors,
)
from .part_uris import member_uri
from .random_masks import slice_version

SAMPLE_NAME = "__key__"
"""As ``--key-column``: the sample's name alone is the key, which must then be unique in all tars."""

_MEMBER_NAME = re.compile(r"^(?:\./)*(?P<sample>(?:.*/)?[^./]+)\.(?:(?P<role>[^/]*)\.)?(?P<suffix>[^./]+)$")
_TEXTS = ("json", "txt")
_EXTRA = pa.struct([(name, pa.string()) for name in _TEXTS])
_PAIRS = pa.schema([*(field for field in SOURCE_PAIRS if field.name != "line"), (EXTRA_COLUMNS, _EXTRA)])
_CONCURRENT_TARS = 16
_BUFFER_BYTES = 2**16
"""Bytes of one request: one reads many small members and texts, and the data of large members is skipped."""

_IMAGE = -2
"""As a member's number: it is the sample's image."""
_ONLY_MASK = -1
"""As a member's number: it is the mask without a number."""


class _IndexedTar(NamedTuple):
    """The pairs of a tar from line ``start`` on, and its files that belong to no pair."""

    uri: str
    version: str
    """Of its slices."""
    start: int
    tables: list[pa.Table]
    left_out: LeftOut
    image_bytes: int
    """Total size of the images that have a mask."""
    mask_bytes: int


class TarPairs(PairSource):
    """The pairs of one or more tars; each is a line, or each image if its masks are random."""

    def __init__(self, source: Source, files: PairFiles, access: Access) -> None:
        """Check the options; nothing is read.

        Raises:
            UsageError: ``--key-column`` is not `SAMPLE_NAME`, or an option of ``access`` has no effect.
        """
        if source.key_column not in ("", SAMPLE_NAME):
            raise UsageError(f"--key-column {source.key_column}: with tars use {SAMPLE_NAME} or leave out the option")
        check_access(access, pa.chunked_array([[files.uris[0]]]))
        super().__init__(files.objects_listed)
        self._source, self._files, self._access = source, files, access
        self.extra_columns = list(_EXTRA)

    def batches(self, known: Mapping[str, Slice]) -> Iterator[PairBatch]:
        """Yield the pairs in the order of the tars, see `PairSource.batches`. Several tars are indexed at a time.

        Raises:
            UsageError: a tar cannot be read, a sample has two images or the same mask twice, or no image has a mask.
        """
        return in_batches(self._pieces(known), self._source)

    def _pieces(self, known: Mapping[str, Slice]) -> Iterator[Piece]:
        empty, image_bytes, mask_bytes = not known, 0, 0
        unchanged = find_unchanged(self._files.uris, known, self._source, self._open)
        self.unchanged = frozenset(unchanged)
        starts = {uri: known[uri].end for uri in unchanged}
        uris = [uri for uri in self._files.uris if not (uri in unchanged and known[uri].is_last)]
        for tar in map_concurrently(
            lambda uri: self._index(uri, unchanged.get(uri), starts.get(uri, 0)),
            uris,
            _CONCURRENT_TARS,
            ahead=_CONCURRENT_TARS,
        ):
            end = tar.start
            for table in tar.tables:
                start, end, empty = end, end + table.num_rows, False
                yield Piece(table, Slice(tar.uri, tar.version, start, end, is_last=False))
            self._add_left_out(tar.left_out)
            counts = tar.left_out.unpaired_images, tar.left_out.unpaired_masks, tar.left_out.ignored_files
            yield Piece(_PAIRS.empty_table(), Slice(tar.uri, tar.version, end, end, is_last=True, left_out=counts))
            image_bytes, mask_bytes = image_bytes + tar.image_bytes, mask_bytes + tar.mask_bytes
        if empty:
            left_out = self.left_out
            raise UsageError(
                f"--pairs {self._source.pairs}: no image has a mask; the mask of a.jpg must be named "
                f"a.{self._source.mask_column}.png (tars: {len(self._files.uris):,}; images without a mask: "
                f"{left_out.unpaired_images:,}; masks without an image: {left_out.unpaired_masks:,}; other files: "
                f"{left_out.ignored_files:,})"
            )
        self.image_and_mask_bytes = image_bytes, mask_bytes

    def _add_left_out(self, new: LeftOut) -> None:
        total = self.left_out
        total.unpaired_images += new.unpaired_images
        total.unpaired_masks += new.unpaired_masks
        total.ignored_files += new.ignored_files
        for names, added in (
            (total.unpaired_image_uris, new.unpaired_image_uris),
            (total.unpaired_mask_uris, new.unpaired_mask_uris),
            (total.unreadable_names, new.unreadable_names),
        ):
            names += added[: MAX_EXAMPLES - len(names)]

    def _open(self, uri: str) -> RangedFile:
        with translate_read_errors(uri):
            return RangedFile(uri, self._access)

    def _index(self, uri: str, file: RangedFile | None, start: int) -> _IndexedTar:
        """Return the pairs of one tar from line ``start`` on; open it if ``file`` is None."""
        file = file or self._open(uri)
        members = _Members(uri, self._source)
        try:
            with translate_read_errors(uri):
                members.read(file)
        except tarfile.TarError as error:
            raise UsageError(
                f"--pairs {uri} is not a tar, or is truncated or damaged; write it again, without compression ({error})"
            ) from error
        shard = uri.removeprefix(f"{self._files.folder}/").removesuffix(".tar")
        key_prefix = "" if self._source.key_column else f"{shard}/"
        images, masks, left_out = members.paired()
        tables = list(members.tables(images[start:], masks[start:], file.version, key_prefix))
        sizes = np.asarray(members.sizes)
        own_masks = self._source.random_masks or self._source.is_own_mask
        return _IndexedTar(
            uri,
            slice_version(file.version, self._source),
            start,
            tables,
            left_out,
            int(sizes[np.unique(images)].sum()),
            0 if own_masks else int(sizes[masks].sum()),
        )


class _Members:
    """The images, masks and texts of a tar, column by column: objects for a million members would need a gigabyte."""

    def __init__(self, uri: str, source: Source) -> None:
        self._uri, self._source = uri, source
        self._mask_role = re.compile(rf"{re.escape(source.mask_column)}(\d{{0,9}})")
        self._samples: dict[str, int] = {}
        """The number of each sample."""
        self._texts: dict[str, dict[int, str]] = {name: {} for name in _TEXTS}
        """By suffix and sample."""
        self._names: list[str] = []
        self._sample, self._number, self._offsets, self.sizes = array("q"), array("q"), array("q"), array("q")
        """Of each image or mask; a mask's number, or `_IMAGE` or `_ONLY_MASK`."""
        self._left_out = LeftOut()

    def read(self, file: RangedFile) -> None:
        """Read the headers and texts of all members.

        Raises:
            UsageError: a sample has two images, or the same mask or text twice, or a text is not UTF-8.
            tarfile.TarError: the tar is damaged.
            OSError: the tar cannot be read.
        """
        with tarfile.open(fileobj=io.BufferedReader(file, _BUFFER_BYTES), mode="r:") as tar:
            for member in _members(tar):
                if not storage.is_utf8(member.name):
                    if len(self._left_out.unreadable_names) < MAX_EXAMPLES:
                        self._left_out.unreadable_names.append(f"{self._uri}: {member.name!a}")
                    self._left_out.ignored_files += 1
                elif not member.isreg() or member.issparse() or not self._add(tar, member):
                    self._left_out.ignored_files += 1
        if file.size % tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"its size of {file.size:,} bytes is not a multiple of {tarfile.BLOCKSIZE}")

    def _add(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> bool:
        """Add an image, a mask or a text to its sample; return False for any other member."""
        if not (name := _MEMBER_NAME.match(member.name)):
            return False
        role, suffix = name["role"] or "", name["suffix"].lower()
        if suffix in _TEXTS and not role:
            sample = self._samples.setdefault(name["sample"], len(self._samples))
            if sample in self._texts[suffix]:
                raise UsageError(f"--pairs {self._uri}: two members are named {member.name}; remove one of them")
            text = tar.extractfile(member)
            assert text is not None  # a regular file has data
            try:
                self._texts[suffix][sample] = text.read().decode()
            except UnicodeDecodeError as error:
                raise UsageError(
                    f"--pairs {self._uri}: {member.name} is not UTF-8; encode it as UTF-8 ({error})"
                ) from error
            return True
        if suffix not in IMAGE_SUFFIXES:
            return False
        if role in ("", self._source.image_column):
            number = _IMAGE
        elif not self._source.random_masks and (mask := self._mask_role.fullmatch(role)):
            number = int(mask[1] or _ONLY_MASK)
        else:
            return False
        self._names.append(member.name)
        self._sample.append(self._samples.setdefault(name["sample"], len(self._samples)))
        self._number.append(number)
        self._offsets.append(member.offset_data)
        self.sizes.append(member.size)
        return True

    def paired(self) -> tuple[NDArray[np.int64], NDArray[np.int64], LeftOut]:
        """Return the members that are the image and the mask of each pair, in the order of the tar; and the others.

        Raises:
            UsageError: a sample has two images, or the same mask twice.
        """
        sample, number, offsets = np.asarray(self._sample), np.asarray(self._number), np.asarray(self._offsets)
        self._check_repeated(sample, number)
        images, masks = np.flatnonzero(number == _IMAGE), np.flatnonzero(number != _IMAGE)
        image_of = np.full(len(self._samples), -1)
        image_of[sample[images]] = images
        left_out = self._left_out
        unpaired_masks = masks[image_of[sample[masks]] < 0]
        if self._source.random_masks or self._source.is_own_mask:
            masks = images
        has_mask = np.zeros(len(self._samples), bool)
        has_mask[sample[masks]] = True
        unpaired_images = images[~has_mask[sample[images]]]
        left_out.unpaired_images, left_out.unpaired_masks = len(unpaired_images), len(unpaired_masks)
        left_out.unpaired_image_uris = [self._member_uri(member) for member in unpaired_images[:MAX_EXAMPLES]]
        left_out.unpaired_mask_uris = [self._member_uri(member) for member in unpaired_masks[:MAX_EXAMPLES]]
        masks = masks[image_of[sample[masks]] >= 0]
        images = image_of[sample[masks]]
        order = np.lexsort((number[masks], sample[masks], offsets[images]))
        return images[order], masks[order], left_out

    def _check_repeated(self, sample: NDArray[np.int64], number: NDArray[np.int64]) -> None:
        order = np.lexsort((number, sample))
        same = (np.diff(sample[order]) == 0) & (np.diff(number[order]) == 0)
        if not same.any():
            return
        first = order[np.flatnonzero(same)[0]]
        members = np.flatnonzero((sample == sample[first]) & (number == number[first]))
        rivals = " and ".join(self._member_uri(member) for member in members[:3])
        if number[first] != _IMAGE:
            raise UsageError(
                f"--pairs {self._uri}: two masks have the same sample and number: {rivals}; remove one of them"
            )
        name = list(self._samples)[sample[first]]
        raise UsageError(f"--pairs {self._uri}: sample {name} has several images: {rivals}; remove all but one")

    def tables(
        self, images: NDArray[np.int64], masks: NDArray[np.int64], version: str, key_prefix: str
    ) -> Iterator[pa.Table]:
        """Yield the pairs of these images and masks in tables of bounded size."""
        samples = list(self._samples)
        for start in range(0, len(images), pairs.BATCH_PAIRS):
            some = images[start : start + pairs.BATCH_PAIRS].tolist(), masks[start : start + pairs.BATCH_PAIRS].tolist()
            numbers = [self._number[mask] for mask in some[1]]
            owners = [self._sample[image] for image in some[0]]
            keys = [
                f"{key_prefix}{samples[owner]}/{number}" if number >= 0 else f"{key_prefix}{samples[owner]}"
                for owner, number in zip(owners, numbers, strict=True)
            ]
            texts = {name: pa.array(map(self._texts[name].get, owners), pa.string()) for name in _TEXTS}
            columns = {
                "key": keys,
                "image_uri": [self._member_uri(image) for image in some[0]],
                "mask_uri": [self._member_uri(mask) for mask in some[1]],
                "mask_index": [max(0, number) for number in numbers],
                "image_version": pa.repeat(version, len(keys)),
                "mask_version": pa.repeat(version, len(keys)),
                "image_bytes": [self.sizes[image] for image in some[0]],
                EXTRA_COLUMNS: pa.table(texts).to_struct_array(),
            }
            yield pa.table(columns, _PAIRS)

    def _member_uri(self, member: int) -> str:
        return member_uri(self._uri, self._names[member], self._offsets[member], self.sizes[member])


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield all members except folders, also those of a tar appended to this one; a hard link as the file it links to.

    Raises:
        tarfile.ReadError: a header is damaged, or the end of the tar is missing.
    """
    names, offsets, sizes = list[str](), array("q"), array("q")  # of regular files
    by_name: dict[str, int] = {}
    indexed = 0  # names that are in by_name; most tars have no hard links and need no dictionary
    while (member := tar.next()) is not None or _open_appended(tar):
        if member is None:
            continue
        tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep all members in memory
        if member.islnk():
            by_name.update(zip(names[indexed:], range(indexed, len(names)), strict=True))
            indexed = len(names)
            if (target := by_name.get(member.linkname)) is not None:
                member.offset_data, member.size = offsets[target], sizes[target]
                member.type = tarfile.REGTYPE
        elif member.isreg():
            names.append(member.name)
            offsets.append(member.offset_data)
            sizes.append(member.size)
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
