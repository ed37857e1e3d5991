"""The images, masks and texts of one tar, in little memory, and the pairs that they make; see `tars`."""

from __future__ import annotations

import io
import re
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from inpaint_encode.errors import UsageError
from inpaint_encode.schema import EXTRA_COLUMNS, SOURCE_PAIRS
from inpaint_encode.settings import Source
from inpaint_encode.stores import storage
from inpaint_encode.stores.ranged_file import RangedFile

from . import pairs
from .pairs import IMAGE_SUFFIXES, MAX_EXAMPLES, LeftOut
from .part_uris import member_uris
from .tar_headers import Member, read_members

_MEMBER_NAME = re.compile(r"^(?:\./)*+(?P<sample>(?:.*/)?[^./]+)\.(?:(?P<role>[^/]*)\.)?(?P<suffix>[^./]+)$")
_BUFFER_BYTES = 2**16
"""Bytes of one request: one reads many small members and texts, and the data of large members is skipped."""

MAX_TEXT_BYTES = 2**24
"""Limit for a member that is copied to a column of the output."""

_RESERVE_EVERY = 64
"""Files after which the memory of the index is reserved."""

_ONLY_MASK = -1
"""As a member's number: it is the mask without a number."""
_IMAGE = -2
"""As a member's number: it is the sample's image."""
_TEXTS = {"json": -3, "txt": -4}
"""Members' numbers of texts, by suffix."""

EXTRA = pa.struct([(name, pa.string()) for name in _TEXTS])
"""Type of `EXTRA_COLUMNS` of tars."""

PAIRS = pa.schema([*(field for field in SOURCE_PAIRS if field.name != "line"), (EXTRA_COLUMNS, EXTRA)])
"""Schema of the pairs of a tar."""


class _Strings:
    """Strings in one buffer of UTF-8: a Python string takes 50 bytes more."""

    def __init__(self) -> None:
        self._data, self._ends = bytearray(), array("q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> bytes:
        return bytes(self._data[self._ends[number] : self._ends[number + 1]])

    @property
    def nbytes(self) -> int:
        """Bytes of the strings and their offsets."""
        return len(self._data) + 8 * len(self._ends)

    def append(self, text: bytes) -> None:
        """Add a string."""
        self._data += text
        self._ends.append(len(self._data))

    def to_arrow(self) -> pa.LargeBinaryArray:
        """Return the strings as an array in the same memory; no string can be added while it exists."""
        buffers = [None, pa.py_buffer(self._ends), pa.py_buffer(self._data)]
        return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(self), buffers)


class TarReader:
    """Reads the headers and texts of a tar.

    A regular file takes 24 bytes and its name. An image, a mask or a text takes 12 bytes more, and a sample 8 bytes and
    its name. Texts are in memory until their pairs are yielded. Hard links need a dictionary: 150 bytes more a file.

    Args:
        uri: of the tar.
        source: the options.
        reserve: is called now and then with the bytes that are in memory; an exception of it ends the reading.
    """

    def __init__(self, uri: str, source: Source, reserve: Callable[[int], None]) -> None:
        self._uri, self._source, self._reserve = uri, source, reserve
        self._mask_role = re.compile(rf"{re.escape(source.mask_column)}(\d{{0,9}})")
        self._names = _Strings()
        self._offsets, self._sizes = array("q"), array("q")
        """Of each regular file, and of each hard link to one; so are the names."""
        self._files, self._runs, self._numbers = array("i"), array("i"), array("i")
        """Of each image, mask or text: its file, its run, and its number, see `TarIndex.numbers`."""
        self._samples, self._last_sample = _Strings(), ""
        """Names of samples, one for each run: images, masks and texts of a sample that are neighbors in the tar."""
        self._texts = {name: _Strings() for name in _TEXTS}
        self._left_out = LeftOut()

    @property
    def _nbytes(self) -> int:
        texts = sum(texts.nbytes for texts in self._texts.values())
        return self._names.nbytes + self._samples.nbytes + texts + 16 * len(self._sizes) + 12 * len(self._files)

    def read(self, file: RangedFile) -> TarIndex:
        """Read all members, also those of a tar appended to this one. A hard link is read as the file it links to.

        Raises:
            UsageError: a sample has two images, or the same mask or text twice, or a text cannot be read.
            DamagedTar: the tar is damaged.
            OSError: the tar cannot be read.
        """
        by_name: dict[bytes, int] = {}
        indexed = 0  # files that are in by_name; most tars have no hard links and need no dictionary
        buffered: IO[bytes] = io.BufferedReader(file, _BUFFER_BYTES)
        for member in read_members(buffered, file.size):
            if member.is_folder:
                continue
            if is_link := member.target is not None:
                by_name.update((self._names[number], number) for number in range(indexed, len(self._names)))
                if (target := by_name.get(member.target)) is not None:
                    offset, size = self._offsets[target], self._sizes[target]
                    member = member._replace(offset=offset, size=size, is_file=True)
            if not member.is_file or not self._add(buffered, member, file.size):
                self._left_out.ignored_files += 1
            if is_link:
                indexed = len(self._names)  # a link to a link is ignored
        return self._to_index()

    def _add(self, file: IO[bytes], member: Member, tar_bytes: int) -> bool:
        """Add a regular file, and add it to its sample; return False if it is no image, mask or text."""
        self._names.append(member.name)
        self._offsets.append(member.offset)
        self._sizes.append(member.size)
        if not len(self._sizes) % _RESERVE_EVERY:
            self._reserve(self._nbytes)
        text = member.name.decode(errors="surrogateescape")
        if not storage.is_utf8(text) or "\0" in text:
            if len(self._left_out.unreadable_names) < MAX_EXAMPLES:
                self._left_out.unreadable_names.append(f"{self._uri}: {text!a}")
            return False
        if not (name := _MEMBER_NAME.match(text)):
            return False
        role, suffix = name["role"] or "", name["suffix"].lower()
        if suffix in _TEXTS and not role:
            number = _TEXTS[suffix]
            self._texts[suffix].append(self._read_text(file, member, text, tar_bytes))
        elif suffix not in IMAGE_SUFFIXES:
            return False
        elif role in ("", self._source.image_column):
            number = _IMAGE
        elif not self._source.random_masks and (mask := self._mask_role.fullmatch(role)):
            number = int(mask[1] or _ONLY_MASK)
        else:
            return False
        if name["sample"] != self._last_sample:  # no sample has an empty name
            self._last_sample = name["sample"]
            self._samples.append(self._last_sample.encode())
        self._files.append(len(self._names) - 1)
        self._runs.append(len(self._samples) - 1)
        self._numbers.append(number)
        return True

    def _read_text(self, file: IO[bytes], member: Member, name: str, tar_bytes: int) -> bytes:
        if member.size > MAX_TEXT_BYTES:
            raise UsageError(
                f"--pairs {self._uri}: {name} has more than {MAX_TEXT_BYTES:,} bytes, the limit for texts; remove it"
            )
        if sum(texts.nbytes for texts in self._texts.values()) + member.size > tar_bytes:
            raise UsageError(f"--pairs {self._uri}: hard links repeat more text than the tar has; remove {name}")
        file.seek(member.offset)
        data = file.read(member.size)
        try:
            data.decode()
        except UnicodeDecodeError as error:
            raise UsageError(f"--pairs {self._uri}: {name} is not UTF-8; encode it as UTF-8 ({error})") from error
        return data

    def _to_index(self) -> TarIndex:
        runs = self._samples.to_arrow().dictionary_encode()
        index = TarIndex(
            uri=self._uri,
            names=self._names.to_arrow(),
            offsets=np.asarray(self._offsets),
            sizes=np.asarray(self._sizes),
            files=np.asarray(self._files),
            samples=runs.indices.to_numpy()[np.asarray(self._runs)],
            numbers=np.asarray(self._numbers),
            sample_names=runs.dictionary,
            texts={name: texts.to_arrow() for name, texts in self._texts.items()},
            left_out=self._left_out,
        )
        index.check_repeated()
        return index


class PairedMembers(NamedTuple):
    """The members that are the image and the mask of each pair, in the order of the tar."""

    images: NDArray[np.int32]
    masks: NDArray[np.int32]


@dataclass(frozen=True)
class TarIndex:
    """The files of a tar in columns: objects for a million members would need a gigabyte."""

    uri: str
    names: pa.LargeBinaryArray
    """Of each regular file, and of each hard link to one; so are the offsets and sizes of their data."""
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    files: NDArray[np.int32]
    """Of each member that is an image, a mask or a text: the number of its file."""
    samples: NDArray[np.int32]
    """Of each member: the number of its sample; samples are numbered in the order of the tar."""
    numbers: NDArray[np.int32]
    """Of each member: the number of a mask, `_ONLY_MASK`, `_IMAGE`, or one of `_TEXTS`."""
    sample_names: pa.LargeBinaryArray
    texts: dict[str, pa.LargeBinaryArray]
    """By suffix, in the order of their members."""
    left_out: LeftOut

    def check_repeated(self) -> None:
        """Raise UsageError if a sample has two images, or the same mask or text twice."""
        order = np.lexsort((self.numbers, self.samples))
        same = np.diff(self.samples[order]) == 0
        same &= np.diff(self.numbers[order]) == 0
        if not same.any():
            return
        repeated = order[1:][same]
        if (texts := repeated[self.numbers[repeated] < _IMAGE]).size:
            name = self.names[int(self.files[texts.min()])].as_py().decode()
            raise UsageError(f"--pairs {self.uri}: two members are named {name}; remove one of them")
        sample, number = self.samples[repeated[0]], self.numbers[repeated[0]]
        members = np.flatnonzero((self.samples == sample) & (self.numbers == number))
        rivals = " and ".join(self._member_uris(members[:3]).to_pylist())
        if number != _IMAGE:
            raise UsageError(
                f"--pairs {self.uri}: two masks have the same sample and number: {rivals}; remove one of them"
            )
        name = self.sample_names[int(sample)].as_py().decode()
        raise UsageError(f"--pairs {self.uri}: sample {name} has several images: {rivals}; remove all but one")

    def paired(self, own_masks: bool) -> PairedMembers:
        """Return the pairs; count the images and masks that are in none.

        Args:
            own_masks: each image is its own mask, or its masks are random.
        """
        images, masks = np.flatnonzero(self.numbers == _IMAGE), np.flatnonzero(self.numbers > _IMAGE)
        image_of = np.full(len(self.sample_names), -1, np.int32)
        image_of[self.samples[images]] = images
        unpaired_masks = masks[image_of[self.samples[masks]] < 0]
        if own_masks:
            masks = images
        has_mask = np.zeros(len(self.sample_names), bool)
        has_mask[self.samples[masks]] = True
        unpaired_images = images[~has_mask[self.samples[images]]]
        left_out = self.left_out
        left_out.unpaired_images, left_out.unpaired_masks = len(unpaired_images), len(unpaired_masks)
        left_out.unpaired_image_uris = self._member_uris(unpaired_images[:MAX_EXAMPLES]).to_pylist()
        left_out.unpaired_mask_uris = self._member_uris(unpaired_masks[:MAX_EXAMPLES]).to_pylist()
        paired_masks = masks[image_of[self.samples[masks]] >= 0].astype(np.int32)
        paired_images = image_of[self.samples[paired_masks]]
        starts = self.offsets[self.files[paired_images]]
        order = np.lexsort((self.numbers[paired_masks], self.samples[paired_masks], starts))
        return PairedMembers(paired_images[order], paired_masks[order])

    def data_bytes(self, members: NDArray[np.int32]) -> int:
        """Return the total size of ``members`` in bytes."""
        return int(self.sizes[self.files[members]].sum())

    def tables(self, paired: PairedMembers, start: int, version: str, key_prefix: str) -> Iterator[pa.Table]:
        """Yield the pairs from number ``start`` on, in tables of bounded size."""
        text_of, text_bytes = {}, np.zeros(len(self.sample_names), np.int64)
        for name, texts in self.texts.items():
            owners = self.samples[self.numbers == _TEXTS[name]]
            text_of[name] = np.full(len(self.sample_names), -1, np.int32)
            text_of[name][owners] = np.arange(len(texts))
            text_bytes[owners] += pc.binary_length(texts).to_numpy()
        while start < len(paired.images):
            images, masks = (members[start : start + pairs.BATCH_PAIRS] for members in paired)
            ends = np.cumsum(text_bytes[self.samples[images]])
            count = max(1, int(np.searchsorted(ends, pairs.BATCH_BYTES, side="right")))
            images, masks = images[:count], masks[:count]
            numbers = {name: of[self.samples[images]] for name, of in text_of.items()}
            extra = {name: self.texts[name].take(pa.array(of, mask=of < 0)) for name, of in numbers.items()}
            yield self._table(images, masks, extra, version, key_prefix)
            start += count

    def _table(
        self,
        images: NDArray[np.int32],
        masks: NDArray[np.int32],
        extra: dict[str, pa.LargeBinaryArray],
        version: str,
        key_prefix: str,
    ) -> pa.Table:
        keys = pc.binary_join_element_wise(key_prefix, _to_strings(self.sample_names.take(self.samples[images])), "")
        numbers = pa.array(self.numbers[masks])
        numbered = pc.binary_join_element_wise(keys, numbers.cast(pa.string()), "/")
        columns = {
            "key": pc.if_else(pc.greater_equal(numbers, 0), numbered, keys),
            "image_uri": self._member_uris(images),
            "mask_uri": self._member_uris(masks),
            "mask_index": np.maximum(self.numbers[masks], 0),
            "image_version": pa.repeat(version, len(images)),
            "mask_version": pa.repeat(version, len(images)),
            "image_bytes": self.sizes[self.files[images]],
            EXTRA_COLUMNS: pa.table({name: _to_strings(texts) for name, texts in extra.items()}).to_struct_array(),
        }
        return pa.table(columns, PAIRS)

    def _member_uris(self, members: NDArray[np.int32] | NDArray[np.int64]) -> pa.StringArray:
        files = self.files[members]
        return member_uris(self.uri, _to_strings(self.names.take(files)), self.offsets[files], self.sizes[files])


def _to_strings(values: pa.LargeBinaryArray) -> pa.StringArray:
    return values.cast(pa.large_string()).cast(pa.string())
