"""How fast rows come back: by ``open_latents``, by plain pyarrow, and from a folder with one file for each image."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, Dataset

from inpaint_encode.metadata import RowMetadata
from inpaint_encode.output.parquet import parquet_file
from inpaint_encode.output.rows import row_groups, rows_table
from inpaint_encode.reader import as_rows
from inpaint_encode.reader.dataset import open_latents
from inpaint_encode.schema import data_schema
from inpaint_encode.stores import storage

from .fake_vae import FAKE_VAE
from .figures import Figure, Measure, Ratio, in_turn
from .peers.loader import BATCH, WORKERS
from .peers.steps import save_npz
from .record import Section
from .writing import encoded_rows

__all__ = ["NpzFolder", "Stored", "by_pyarrow", "reading_section", "write_rows"]

_FILE_ROWS = 256
_WAYS: tuple[Literal["tensor", "packed"], ...] = ("tensor", "packed")
_UNIT = "rows/s"

Row = dict[str, Any]


class Stored:
    """The same rows in each form, below one folder or prefix."""

    def __init__(self, prefix: str, count: int) -> None:
        self.count = count
        self.outputs = {way: f"{prefix}/{way}" for way in _WAYS}
        self.npz = [f"{prefix}/npz/{_key(number)}.npz" for number in range(count)]

    def files(self, way: Literal["tensor", "packed"]) -> list[str]:
        """The Parquet files of a way to store masks."""
        return [f"{self.outputs[way]}/{number:08d}.parquet" for number in range(-(-self.count // _FILE_ROWS))]


def write_rows(folder: Path, count: int) -> Stored:
    """Write ``count`` rows of 512 x 512 as two outputs, which differ in how masks are stored, and as ``.npz`` files."""
    stored = Stored(str(folder), count)
    encoded = encoded_rows(count)
    for way in _WAYS:
        schema = data_schema(RowMetadata(vae=FAKE_VAE, mask_encoding=way))
        for number, uri in enumerate(stored.files(way)):
            rows = encoded[number * _FILE_ROWS : (number + 1) * _FILE_ROWS]
            groups = row_groups(rows_table(rows, schema), schema)
            storage.write(uri, parquet_file(groups, schema))
    for row in open_latents(stored.outputs["packed"]):
        save_npz(folder / "npz", row["key"], row["samples"], row["noise_mask"][0])
    return stored


def _key(number: int) -> str:
    return f"{number // 1000:04}/{number:07}"


def reading_section(where: str, stored: Stored, repeats: int = 5) -> Section:
    """Read all rows of ``stored`` in every way, in turns; ``where`` they are is for the title.

    What is read has been read before, so that a disk's files are in memory.
    """
    folder = DataLoader(NpzFolder(stored.npz), BATCH, num_workers=WORKERS, persistent_workers=True)
    measures = {"DataLoader over .npz": _rate(lambda: folder, stored.count)}
    for way, output in stored.outputs.items():
        dataset = open_latents(output)
        batches = partial(dataset.stream, batch_size=BATCH, shuffle=True)
        measures[f"pyarrow, {way} masks"] = _rate(partial(by_pyarrow, stored.files(way)), stored.count)
        measures[f"open_latents, {way} masks"] = _rate(dataset.stream, stored.count)
        measures[f"open_latents, {way} masks, shuffled batches"] = _rate(batches, stored.count)
    figures = in_turn(_UNIT, measures, repeats)
    text = (
        f"{stored.count} rows of 512 x 512, all columns, float16 latents; clock time. pyarrow reads one file after the "
        f"other, whole, in all its threads, and makes numpy views of its tensors, packed masks unpacked. open_latents "
        f"yields torch tensors, reading in as many threads as there are CPUs, at most four; its batches have {BATCH} "
        f"rows. The .npz files, one an image and not compressed, have latents and mask alone; {WORKERS} workers make "
        f"batches of {BATCH}."
    )
    return Section(f"Reading, from {where}", text, tuple(figures.values()), _ratios(figures, stored.outputs))


def _ratios(figures: dict[str, Figure], ways: Iterable[str]) -> tuple[Ratio, ...]:
    return tuple(
        Ratio(f"open_latents over {other}, {way} masks", figures[f"open_latents, {way} masks"], figures[name])
        for way in ways
        for other, name in (("pyarrow", f"pyarrow, {way} masks"), (".npz", "DataLoader over .npz"))
    )


def _rate(read: Callable[[], Iterable[object]], count: int) -> Measure:
    def measure() -> float:
        start = time.perf_counter()
        for _ in read():
            pass
        return count / (time.perf_counter() - start)

    return measure


def by_pyarrow(uris: Sequence[str]) -> Iterator[Row]:
    """Read whole files one after the other, as pyarrow does when it is told nothing else."""
    for uri in uris:
        yield from as_rows(pq.read_table(uri))


class NpzFolder(Dataset[Row]):
    """One row a file, on a disk or in a bucket."""

    def __init__(self, uris: Sequence[str]) -> None:
        self._uris = uris
        self._files: Any = None

    def __len__(self) -> int:
        return len(self._uris)

    def __getitem__(self, number: int) -> Row:
        with np.load(self._open(self._uris[number])) as arrays:
            return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _open(self, uri: str) -> io.BytesIO | str:
        """Each worker has a client of its own."""
        if "://" not in uri:
            return uri
        if self._files is None:
            import s3fs

            self._files = s3fs.S3FileSystem(skip_instance_cache=True)
        return io.BytesIO(self._files.cat_file(uri))
