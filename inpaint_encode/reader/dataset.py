"""An output as torch datasets: rows by number or key, and a stream of rows or batches to train on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import cpu_count
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

from inpaint_encode.errors import UsageError
from inpaint_encode.metadata import RowMetadata

from . import order
from .batches import Function, applied
from .columns import Row
from .groups import Groups
from .output import Output
from .stream import LatentStream, Plan, read_ahead, rows_at, this_rank

if TYPE_CHECKING:
    import ray.data

__all__ = ["LatentDataset", "open_latents"]

_AT_ONCE = 4
"""Row groups that are read at the same time, if nothing else is said."""

_THREADS = 32
"""Of requests for keys alone."""


def open_latents(output: str, *, columns: Sequence[str] | None = None) -> LatentDataset:
    """Open what a job wrote, on a disk or in a bucket, as a torch dataset; its rows are dicts.

    This lists the output, a request for a thousand files. The first thing that needs to know where rows are, such as
    ``len``, a row or `LatentDataset.stream`, reads the footers of all files, once: a request of at most 64 KiB for
    each. So 40,000 files are 40 requests and then 40,000, 32 of them at a time.

    Args:
        output: folder or prefix that a job wrote, finished or not: a file that is there is whole.
        columns: those to read, such as ``["key", "samples"]``; leaving out masks as tensors, ``noise_mask``, makes
            reading ten times as fast. By default all.

    Raises:
        UsageError: no output can be there, it holds no rows, or has no such column.
        PermissionError, OSError: by what the store said.
    """
    opened = Output.open(output)
    if columns is not None:
        _refuse_unknown(columns, opened)
    return LatentDataset(Groups(opened, None if columns is None else tuple(columns)))


def _refuse_unknown(columns: Sequence[str], output: Output) -> None:
    known = output.footer(output.files[0]).schema.to_arrow_schema().names
    if unknown := [name for name in columns if name not in known]:
        raise UsageError(f"{output.uri} has no column {', '.join(unknown)}; it has {', '.join(known)}")
    if not columns:
        raise UsageError(f"no columns are asked for; {output.uri} has {', '.join(known)}")


@dataclass(frozen=True, eq=False)
class LatentDataset(Dataset[Row]):
    """The rows of an output: ``len(ds)``, ``ds[7]``, ``ds["a/042"]``, and all of them by iterating.

    A row is a dict by column: ``samples`` and other tensors are torch tensors that own their memory, in the stored
    type, see `inpaint_encode.schema.data_schema` for their shapes; masks are unpacked; anything else is a plain value.
    Iterating gives every row once, in the order of the files and to everyone who does it; `stream` is for training.
    A ``DataLoader`` and its samplers take it as a map-style dataset, with `inpaint_encode.reader.batches.collate` where
    rows have the same shapes. Each row out of order costs the reading of its row group, though: 32 rows of 512 x 512.
    """

    groups: Groups
    functions: tuple[Function, ...] = ()

    @property
    def metadata(self) -> RowMetadata:
        """How the rows were made: the VAE, the settings of rows, versions."""
        return self.groups.output.metadata

    def __len__(self) -> int:
        return len(self.groups.index)

    def __getitem__(self, which: int | str) -> Row:
        """Return a row by its number, in the order of the files, or by its key.

        Of the output's files, the footers and the row's group are read; by a key, the keys of its group before.

        Raises:
            IndexError: there is no row of this number.
            KeyError: there is no row of this key.
            PermissionError, OSError: by what the store said.
        """
        (row,) = self.__getitems__([self._number(which) if isinstance(which, str) else which])
        return row

    def __getitems__(self, numbers: Sequence[int]) -> list[Row]:
        """Return rows by their numbers; a row group that several are in is read once."""
        places = [self.groups.index.place(number) for number in numbers]
        return [applied(row, self.functions) for row in rows_at(self.groups, places)]

    def _number(self, key: str) -> int:
        if (found := self.groups.find(key)) is None:
            raise KeyError(key)
        group, row = found
        return int(self.groups.index.ends[group] - self.groups.index.sizes[group]) + row

    def __iter__(self) -> Iterator[Row]:
        return iter(self.stream(rank=0, world_size=1))

    def keys(self) -> Iterator[str]:
        """Yield the key of every row, in the order of the files; no other column is read, a request a row group."""
        windows = order.windows(self.groups.index.sizes, range(len(self)), None)
        coming = read_ahead(((window, 0) for window in windows), lambda piece: self.groups.keys(piece.group), _THREADS)
        return (key for _, _, (keys,) in coming for key in keys.to_pylist())

    def map(self, function: Callable[[Row], Row]) -> LatentDataset:
        """Return a dataset that makes ``function`` of each row, in the process that reads it, after earlier ones.

        Args:
            function: takes and returns a dict with torch tensors; one that travels to spawned workers must pickle. One
                that draws random numbers has to take care itself that workers and resumed streams draw others.
        """
        return replace(self, functions=(*self.functions, function))

    def for_diffusers(self, **options: Any) -> LatentDataset:
        """Return a dataset whose tensors are those that diffusers' inpainting models take; other columns stay.

        Args:
            options: those of `conventions.for_diffusers`, which says what the tensors are.

        Raises:
            UsageError: see `conventions.check_for_diffusers`.
        """
        from .conventions import check_for_diffusers, for_diffusers

        check_for_diffusers(self.metadata, **options)
        return self.map(partial(_converted, by=partial(for_diffusers, metadata=self.metadata, **options)))

    def for_comfyui(self, **options: Any) -> LatentDataset:
        """Return a dataset whose tensors are a LATENT of ComfyUI; other columns stay.

        Args:
            options: those of `conventions.for_comfyui`, which says what the tensors are.
        """
        from .conventions import for_comfyui

        return self.map(partial(_converted, by=partial(for_comfyui, metadata=self.metadata, **options)))

    def stream(
        self,
        *,
        batch_size: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
        shuffle_groups: int = 16,
        drop_last: bool = False,
        even: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        prefetch: int | None = None,
    ) -> LatentStream:
        """Return an iterable torch dataset of rows, or of batches, for one rank; see `LatentStream`.

        Args:
            batch_size: rows of a batch, whose tensors all have the same shapes; None yields rows.
            shuffle: another order for every seed and epoch; `order.windows` says how random it is.
            seed: of the orders.
            shuffle_groups: row groups whose rows are mixed; more mix better and take more memory.
            drop_last: leave out the smaller batches at the end of a worker's rows.
            even: let all ranks yield as many batches, all of them full.
            rank: whose part; by default that of torch.distributed, else RANK, as it is now.
            world_size: number of ranks; by default that of torch.distributed, else WORLD_SIZE, as it is now.
            prefetch: row groups that are read at the same time, ahead of those in use; by default 4, or as many as
                there are CPUs if that is fewer, since threads that decode side by side on one CPU slow each other.

        Raises:
            UsageError: a number is out of range.
            PermissionError, OSError: by what the store said.
        """
        plan = Plan(batch_size, shuffle, seed, shuffle_groups, drop_last, even, *this_rank(rank, world_size))
        threads = min(_AT_ONCE, cpu_count() or 1) if prefetch is None else prefetch
        return LatentStream(self.groups, self.functions, plan, threads)

    def to_ray(self) -> ray.data.Dataset:
        """Return the rows as a Ray dataset; see `on_ray.dataset_of`."""
        from .on_ray import dataset_of

        return dataset_of(self)


def _converted(row: Row, by: Function) -> Row:
    return {name: value for name, value in row.items() if not torch.is_tensor(value)} | by(row)
