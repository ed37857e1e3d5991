"""An output as torch datasets: map-style by row number or key, and iterable for training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from os import cpu_count
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from torch.utils.data import Dataset

from inpaint_encode.errors import UsageError
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.output.parquet import translate_errors
from inpaint_encode.schema import TENSORS, is_packed
from inpaint_encode.stores import storage

from . import sampler
from .batches import Transform, apply_transforms, read_ahead, read_rows, to_tensors
from .conventions import Layout, check_for_diffusers, for_comfyui, for_diffusers
from .files import DataFile
from .groups import RowGroupReader
from .output import Output, Row, TensorColumn
from .stream import LatentStream, StreamOptions, current_rank

if TYPE_CHECKING:
    import ray.data

_PREFETCH_GROUPS = 4
_KEY_THREADS = 32


def open_latents(output: str, *, columns: Sequence[str] | None = None) -> LatentDataset:
    """Open the output of a job, on a disk or in a bucket, as a torch dataset. Rows are dicts by column.

    Opening a finished output takes two requests, for its index. Any other output is listed: one request per 1,000
    files, and one per finished unit of work. Of the other files, the first operation that needs row numbers, such as
    ``len``, access to a row or `LatentDataset.stream`, reads the footers: one request of at most 64 KiB per file, 32 at
    a time.

    Args:
        output: folder or URI prefix that a job wrote. The job may be unfinished: every file is complete.
        columns: columns to read, such as ``["key", "samples"]``; by default all. Rows without ``noise_mask`` are read
            about ten times as fast if masks are stored as tensors.

    Raises:
        UsageError: the URI is invalid, the output has no rows, or a column does not exist.
        PermissionError, OSError: the store's error.

    Example::

        ds = open_latents("s3://bucket/latents")
        len(ds), ds[7]["key"], ds["a/042"]["samples"].shape  # 1000, "a/007", torch.Size([4, 64, 64])
        for batch in ds.for_diffusers().stream(batch_size=8, shuffle=True):
            batch["latents"], batch["mask"], batch["masked_image_latents"]
    """
    opened = Output.open(output)
    if columns is not None:
        known = opened.footer(opened.files[0]).schema.to_arrow_schema().names
        if unknown := [name for name in columns if name not in known]:
            raise UsageError(f"{opened.uri} has no column {', '.join(unknown)}; it has {', '.join(known)}")
        if not columns:
            raise UsageError(f"columns is empty; {opened.uri} has {', '.join(known)}")
    return LatentDataset(RowGroupReader(opened, None if columns is None else tuple(columns)))


@dataclass(frozen=True, eq=False)
class LatentDataset(Dataset[Row]):
    """Map-style dataset of an output's rows: ``len(ds)``, ``ds[7]``, ``ds["a/042"]``, ``for row in ds``.

    A row is a dict by column. Tensor columns, such as ``samples``, are torch tensors in the stored type, in the shapes
    of `inpaint_encode.schema.data_schema`; they own their memory. Packed masks are unpacked. Other values are plain.
    Iteration yields all rows in file order, in every process; for training, use `stream`.

    A ``DataLoader`` with a sampler also works, with `inpaint_encode.reader.batches.collate` as ``collate_fn`` if all
    rows have the same shapes. Random access is slow: each row costs its row group, 32 rows of 512 x 512.
    """

    groups: RowGroupReader
    transforms: tuple[Transform, ...] = ()

    @property
    def metadata(self) -> RowMetadata:
        """How the rows were made: VAE, options and versions."""
        return self.groups.output.metadata

    def __len__(self) -> int:
        return len(self.groups.index)

    def __getitem__(self, row: int | str) -> Row:
        """Return a row by its number in file order, or by its key. Reads the row's row group.

        Raises:
            IndexError: the number is out of range.
            KeyError: no row has this key.
            PermissionError, OSError: the store's error.
        """
        if not isinstance(row, str):
            return self.__getitems__([row])[0]
        if (found := self.groups.row(row)) is None:
            raise KeyError(row)
        return apply_transforms(to_tensors(found), self.transforms)

    def __getitems__(self, numbers: Sequence[int]) -> list[Row]:
        """Return rows by their numbers. Each row group is read once."""
        places = [self.groups.index.locate(number) for number in numbers]
        return [apply_transforms(row, self.transforms) for row in read_rows(self.groups, places)]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.stream(rank=0, world_size=1))

    def keys(self) -> Iterator[str]:
        """Yield the keys of all rows in file order. Reads only the keys: one request per row group."""
        windows = sampler.windows(self.groups.index.sizes, range(len(self)), None)
        groups = read_ahead(windows, lambda part: self.groups.keys(part.group), _KEY_THREADS)
        return (key for _, (keys,) in groups for key in keys.to_pylist())

    def map(self, function: Callable[[Row], Row]) -> LatentDataset:
        """Return a dataset that applies ``function`` to each row after the functions of earlier calls.

        Args:
            function: takes and returns a dict with torch tensors, in the process that reads the row. It must pickle if
                workers are spawned. If it uses random numbers, it must seed them: per worker, and after resuming.
        """
        return replace(self, transforms=(*self.transforms, function))

    def for_diffusers(
        self,
        *,
        layout: Layout = "channels",
        with_latents: bool = True,
        generator: torch.Generator | None = None,
        vae_family: str = "",
    ) -> LatentDataset:
        """Return a dataset whose tensors are the inputs of diffusers' inpainting models. Other columns stay.

        The arguments and the tensors are those of `inpaint_encode.reader.conventions.for_diffusers`.

        Raises:
            UsageError: the output does not have what is needed; see `conventions.check_for_diffusers`.
        """
        options: dict[str, Any] = {"layout": layout, "with_latents": with_latents, "generator": generator}
        options["vae_family"] = vae_family
        check_for_diffusers(self.metadata, **options)
        return self.map(partial(_convert, convert=partial(for_diffusers, metadata=self.metadata, **options)))

    def for_comfyui(self, *, original: bool = False) -> LatentDataset:
        """Return a dataset whose tensors are a LATENT of ComfyUI. Other columns stay.

        The argument and the tensors are those of `inpaint_encode.reader.conventions.for_comfyui`.
        """
        return self.map(partial(_convert, convert=partial(for_comfyui, metadata=self.metadata, original=original)))

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
        """Return an iterable torch dataset of rows or batches for one rank; see `LatentStream`.

        Args:
            batch_size: rows per batch; the tensors of a batch have the same shapes. None yields single rows.
            shuffle: use a random order, which depends on ``seed`` and the epoch; see `sampler.windows`.
            seed: seed of the random order.
            shuffle_groups: row groups whose rows are mixed. More mix better and use more memory, about 10 MB each.
            drop_last: leave out incomplete batches at the end of a worker's rows.
            even: yield the same number of full batches on every rank.
            rank: number of this rank; by default that of torch.distributed, else RANK, else 0.
            world_size: number of ranks; by default that of torch.distributed, else WORLD_SIZE, else 1.
            prefetch: row groups to read at the same time. By default 4, or the number of CPUs if that is smaller:
                threads that decode on the same CPU slow each other down.

        Raises:
            UsageError: a number is out of range.
            PermissionError, OSError: the store's error.

        Example::

            stream = ds.stream(batch_size=8, shuffle=True, seed=1)
            for epoch in range(3):
                stream.set_epoch(epoch)
                for batch in DataLoader(stream, batch_size=None, num_workers=2):
                    batch["samples"], batch["noise_mask"], batch["key"]
        """
        ranks = current_rank(rank, world_size)
        options = StreamOptions(batch_size, shuffle, seed, shuffle_groups, drop_last, even, *ranks)
        threads = min(_PREFETCH_GROUPS, cpu_count() or 1) if prefetch is None else prefetch
        return LatentStream(self.groups, self.transforms, options, threads)

    def to_ray(self) -> ray.data.Dataset:
        """Return the rows as a Ray dataset, which Ray's tasks read lazily.

        Tensor columns are numpy arrays in each row's shape; packed masks are unpacked. The functions of `map` get torch
        tensors, and the tensors that they return become arrays.

        Raises:
            ImportError: Ray is not installed.
        """
        try:
            import ray.data
        except ModuleNotFoundError as error:
            raise ImportError("to_ray needs Ray, which is not installed; run: pip install 'ray[data]'") from error

        output = self.groups.output
        files = ray.data.from_items([asdict(file) for file in output.files])  # Ray's own reader would unpickle values
        read = partial(_read_for_ray, uri=output.uri, columns=self.groups.columns)
        rows = files.map_batches(read, batch_size=None, batch_format="pyarrow")
        return rows.map(partial(_transform, transforms=self.transforms)) if self.transforms else rows


def _convert(row: Row, convert: Transform) -> Row:
    return {name: value for name, value in row.items() if not torch.is_tensor(value)} | convert(row)


def _read_for_ray(files: pa.Table, uri: str, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    """Yield the row groups of data files, given as rows of `DataFile`, with tensors that Ray knows."""
    from ray.data.extensions import ArrowVariableShapedTensorArray, ArrowVariableShapedTensorType

    output = Output(uri, [])
    for file in (DataFile(**row) for row in files.to_pylist()):
        with translate_errors(storage.join(uri, file.path)), output.parquet(file) as parquet:
            for number in range(parquet.metadata.num_row_groups):
                table = parquet.read_row_group(number, columns).combine_chunks()
                for name in (name for name in TENSORS if name in table.column_names and table.num_rows):
                    (values,) = table[name].chunks
                    if is_packed(values.type):
                        tensors = ArrowVariableShapedTensorArray.from_numpy(list(TensorColumn(values)))
                    else:
                        type_ = ArrowVariableShapedTensorType(values.type.field("data").type.value_type, 3)
                        tensors = pa.ExtensionArray.from_storage(type_, values.cast(type_.storage_type))
                    table = table.set_column(table.schema.get_field_index(name), name, tensors)
                if table.num_rows:
                    yield table


def _transform(row: Row, transforms: tuple[Transform, ...]) -> Row:
    transformed = apply_transforms(to_tensors(row), transforms)
    return {name: value.numpy() if torch.is_tensor(value) else value for name, value in transformed.items()}
