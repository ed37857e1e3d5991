"""The rate of reading rows: by ``open_latents``, by plain pyarrow, and from a folder with one file for each image."""

from __future__ import annotations

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
from .figures import Measure, Ratio, in_turn
from .peers.loader import BATCH, WORKERS
from .peers.steps import read_file, save_npz
from .record import Section
from .writing import MASK_ENCODINGS, encoded_rows

__all__ = ["NpzFolder", "StoredRows", "read_with_pyarrow", "reading_section", "write_rows"]

_FILE_ROWS = 256

Row = dict[str, Any]


class StoredRows:
    """The same rows in each form, below one folder or prefix."""

    def __init__(self, prefix: str, count: int) -> None:
        self.count = count
        self.outputs = {encoding: f"{prefix}/{encoding}" for encoding in MASK_ENCODINGS}
        self.npz = [f"{prefix}/npz/{number // 1000:04}/{number:07}.npz" for number in range(count)]

    def files(self, encoding: Literal["tensor", "packed"]) -> list[str]:
        """Return the Parquet files of a mask encoding."""
        return [f"{self.outputs[encoding]}/{number:08d}.parquet" for number in range(-(-self.count // _FILE_ROWS))]


def write_rows(folder: Path, count: int) -> StoredRows:
    """Write ``count`` rows of 512 x 512 as one output for each mask encoding, and as ``.npz`` files."""
    stored = StoredRows(str(folder), count)
    encoded = encoded_rows(count)
    for encoding in MASK_ENCODINGS:
        schema = data_schema(RowMetadata(vae=FAKE_VAE, mask_encoding=encoding))
        for number, uri in enumerate(stored.files(encoding)):
            rows = encoded[number * _FILE_ROWS : (number + 1) * _FILE_ROWS]
            storage.write(uri, parquet_file(row_groups(rows_table(rows, schema), schema), schema))
    for row in open_latents(stored.outputs["packed"]):
        save_npz(folder / "npz", row["key"], row["samples"], row["noise_mask"][0])
    return stored


def reading_section(where: str, stored: StoredRows, repeats: int = 5) -> Section:
    """Read all rows of ``stored`` in every way, in turn; ``where`` is for the title.

    A warm-up reads everything first, so the files of a disk are in memory.
    """
    folder = DataLoader(NpzFolder(stored.npz), BATCH, num_workers=WORKERS, persistent_workers=True)
    measures = {"DataLoader over .npz": _rate(lambda: folder, stored.count)}
    for encoding, output in stored.outputs.items():
        dataset = open_latents(output)
        batches = partial(dataset.stream, batch_size=BATCH, shuffle=True)
        measures[f"pyarrow, {encoding} masks"] = _rate(partial(read_with_pyarrow, stored.files(encoding)), stored.count)
        measures[f"open_latents, {encoding} masks"] = _rate(dataset.stream, stored.count)
        measures[f"open_latents, {encoding} masks, shuffled batches"] = _rate(batches, stored.count)
    figures = in_turn("rows/s", measures, repeats)
    text = (
        f"{stored.count} rows of 512 x 512, all columns, float16 latents; wall time. pyarrow reads whole files one "
        "after the other, in all its threads, and returns numpy views of its tensors, with packed masks unpacked. "
        "open_latents yields torch tensors and reads in one thread per CPU, at most four; its batches have "
        f"{BATCH} rows. The .npz files, one for each image and not compressed, have only latents and mask; {WORKERS} "
        f"workers make batches of {BATCH}."
    )
    ratios = tuple(
        Ratio(f"open_latents over {other}, {encoding} masks", figures[f"open_latents, {encoding} masks"], figures[name])
        for encoding in stored.outputs
        for other, name in (("pyarrow", f"pyarrow, {encoding} masks"), (".npz", "DataLoader over .npz"))
    )
    return Section(f"Reading, from {where}", text, tuple(figures.values()), ratios)


def _rate(read: Callable[[], Iterable[object]], count: int) -> Measure:
    def measure() -> float:
        start = time.perf_counter()
        for _ in read():
            pass
        return count / (time.perf_counter() - start)

    return measure


def read_with_pyarrow(uris: Sequence[str]) -> Iterator[Row]:
    """Read whole files one after the other, with pyarrow's defaults."""
    for uri in uris:
        yield from as_rows(pq.read_table(uri))  # noqa: TID251


class NpzFolder(Dataset[Row]):
    """One row per file, on a disk or in a bucket."""

    def __init__(self, uris: Sequence[str]) -> None:
        self._uris = uris

    def __len__(self) -> int:
        return len(self._uris)

    def __getitem__(self, number: int) -> Row:
        with np.load(read_file(self._uris[number]), allow_pickle=False) as arrays:  # noqa: TID251
            return {name: torch.from_numpy(array) for name, array in arrays.items()}
