"""Pairs of a manifest: each line names an image and a mask, and has other columns for the output.

A value of another column is copied to the pair's row with its Arrow type. Of a dictionary the value is copied, of an
extension type the storage.
"""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from inpaint_encode.errors import UsageError
from inpaint_encode.schema import COLUMNS, EXTRA_COLUMNS
from inpaint_encode.settings import Source
from inpaint_encode.stores.access import Access

from .listing import PairFiles
from .manifest_files import ManifestLines, read_manifest_file
from .pairs import SYSTEM_POOL, FoundPairs, check_unique_keys
from .part_uris import without_suffix
from .random_masks import with_random_masks

_ABSOLUTE = r"^(?:[A-Za-z][A-Za-z0-9+.-]*://|/)"
_READABLE = r"^(?:(?:s3|gs|https?)://[^/@]+/|file:///|/)"


def from_manifest(source: Source, files: PairFiles, access: Access) -> FoundPairs:
    """Read the manifest; a line is a pair, or an image with its ``--random-masks``.

    Raises:
        UsageError: the manifest cannot be read or has no lines, a column is missing or has the name of an output
            column, a line has no URI or occurs twice, or a key is not unique.
    """
    table, versions, image_bytes, mask_bytes, row_groups = _read_files(source, files, access)
    images = _uri_column(table, "--image-column", source.image_column, files)
    no_mask_column = source.random_masks > 0 or source.is_own_mask
    masks = images if no_mask_column else _uri_column(table, "--mask-column", source.mask_column, files)
    image_numbers = _number_values(images)
    by_image = np.argsort(image_numbers, kind="stable")
    _check_repeated_lines(source, images, masks, image_numbers)
    index = _mask_index(image_numbers, by_image)
    if source.key_column:
        keys = _string_column(table, "--key-column", source.key_column, files)
    else:
        keys = _default_keys(images, index, files.folder)
    columns = {
        "key": keys,
        "image_uri": images,
        "mask_uri": masks,
        "mask_index": pa.array(index, pa.int32()),
        "image_version": versions["image_version"],
        "mask_version": versions["image_version" if no_mask_column else "mask_version"],
        "image_bytes": versions["image_bytes"],
    }
    used = {source.image_column, source.key_column} | (set() if source.random_masks else {source.mask_column})
    extra = _extra_columns(source.pairs, table, used)
    pairs = pa.table(columns | ({EXTRA_COLUMNS: extra.to_struct_array()} if extra.num_columns else {}))
    del table  # frees the columns of URIs before the keys are checked
    if not (np.diff(by_image) == 1).all():  # else save the copy
        pairs = pairs.take(by_image)
    pairs = with_random_masks(pairs, source) if source.random_masks else pairs
    advice = "make them unique" if source.key_column else "name a column with unique keys: --key-column"
    check_unique_keys(f"--pairs {source.pairs}", pairs, lambda some: some["image_uri"], advice)
    all_embedded = image_bytes and (mask_bytes or no_mask_column)
    return FoundPairs(
        pairs,
        objects_listed=files.objects_listed,
        image_row_groups=row_groups,
        image_and_mask_bytes=(image_bytes, mask_bytes) if all_embedded else None,
    )


def _read_files(source: Source, files: PairFiles, access: Access) -> ManifestLines:
    where = f"--pairs {source.pairs}"
    try:
        read = [read_manifest_file(uri, source, access) for uri in files.uris]
        tables, versions, image_bytes, mask_bytes, row_groups = zip(*read, strict=True)
        table = pa.concat_tables(tables)
    except OSError as error:
        raise UsageError(
            f"{where} cannot be read: {error.strerror or error}; check the path and the credentials"
        ) from error
    except (pa.ArrowException, ValueError) as error:
        several = " or its files have different columns" if len(files.uris) > 1 else ""
        raise UsageError(f"{where} is not valid {files.suffix}{several}; correct it ({error})") from error
    if not table.num_rows:
        raise UsageError(f"{where} has no lines; add a line for each pair")
    names = table.column_names
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"{where} has several columns with the same name: {', '.join(repeated)}; rename all but one")
    return ManifestLines(table, pa.concat_tables(versions), sum(image_bytes), sum(mask_bytes), sum(row_groups))


def _string_column(table: pa.Table, option: str, name: str, files: PairFiles) -> pa.ChunkedArray:
    if name not in table.column_names:
        has = ", ".join(table.column_names)
        raise UsageError(f"{option} {name}: there is no such column; the list of pairs has {has}")
    try:
        strings = table[name].cast(pa.string())
    except pa.ArrowException as error:
        raise UsageError(
            f"{option} {name} has type {table[name].type} instead of string; name another column ({error})"
        ) from error
    empty = pc.or_kleene(pc.is_null(strings), pc.equal(strings, ""))
    if (line := pc.index(empty, True).as_py()) >= 0:
        raise UsageError(f"{option} {name} has no value in {_row_name(line, files)}; add the value")
    return strings


def _row_name(line: int, files: PairFiles) -> str:
    """Name a row as a user counts: from 1, without the header of a CSV file."""
    if files.suffix == "csv":
        return f"data row {line + 1:,}, not counting the header"
    through = " through all files" if len(files.uris) > 1 else ""
    return f"row {line + 1:,}, counting from 1{through}"


def _uri_column(table: pa.Table, option: str, name: str, files: PairFiles) -> pa.ChunkedArray:
    """Return the URIs of a column in the form of `storage.normalize_uri`; relative ones are below the files' folder."""
    uris = _string_column(table, option, name, files)
    absolute = pc.match_substring_regex(uris, _ABSOLUTE)
    readable = pc.or_(pc.invert(absolute), pc.match_substring_regex(uris, _READABLE))
    if (line := pc.index(readable, False).as_py()) >= 0:
        raise UsageError(
            f"{option} {name}: {uris[line]} cannot be read; use a path, or a URI without credentials that begins with "
            "s3://, gs://, http://, https:// or file:// and has a name after it"
        )
    paths = uris
    if pc.any(pc.starts_with(paths, "./")).as_py():
        paths = pc.replace_substring_regex(paths, r"^(?:\./)+", "")
    relative = pc.binary_join_element_wise(files.folder, paths, "/")
    if not pc.any(absolute).as_py():
        return relative
    return pc.if_else(absolute, pc.replace_substring_regex(uris, "^file://", ""), relative)


def _number_values(strings: pa.ChunkedArray) -> NDArray[np.int64]:
    """Number the different strings in order of appearance; return the number of each string."""
    chunks = pc.dictionary_encode(strings, memory_pool=SYSTEM_POOL).chunks  # all have the same dictionary
    return np.concatenate([chunk.indices.to_numpy() for chunk in chunks]).astype(np.int64)


def _mask_index(image_numbers: NDArray[np.int64], by_image: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return for each line the number of earlier lines with its image; ``by_image`` sorts the lines by image."""
    images = image_numbers[by_image]
    starts = np.flatnonzero(np.diff(images, prepend=-1))
    counts = np.diff(np.append(starts, len(images)))
    index = np.empty(len(images), np.int32)
    index[by_image] = np.arange(len(images)) - np.repeat(starts, counts)
    return index


def _check_repeated_lines(
    source: Source, images: pa.ChunkedArray, masks: pa.ChunkedArray, image_numbers: NDArray[np.int64]
) -> None:
    if source.random_masks and source.key_column:
        return  # then the keys tell lines with the same image apart
    pairs = image_numbers << 32 | (image_numbers if masks is images else _number_values(masks))
    numbers, first, counts = np.unique(pairs, return_index=True, return_counts=True)
    if len(numbers) < len(pairs):
        line = int(first[counts > 1][0])
        advice = ", or tell them apart with --key-column" if source.random_masks else ""
        raise UsageError(
            f"--pairs {source.pairs}: {len(pairs) - len(numbers):,} lines are repeated, for example the line with "
            f"{images[line]} and {masks[line]}; remove them{advice}"
        )


def _default_keys(images: pa.ChunkedArray, index: NDArray[np.int32], folder: str) -> pa.ChunkedArray:
    """Return the image's path below ``folder``, or else its URI, without the suffix.

    From the image's second mask on, its number is added. So adding a line at the end changes no key.
    """
    below = pc.starts_with(images, f"{folder}/")
    paths = pc.utf8_slice_codeunits(images, len(folder) + 1)
    if not pc.all(below).as_py():
        paths = pc.if_else(below, paths, images)
    stems = without_suffix(paths)
    if not index.any():
        return stems
    numbered = pc.binary_join_element_wise(stems, pa.array(index).cast(pa.string()), "/")
    return pc.if_else(pa.array(index > 0), numbered, stems)


def _extra_columns(uri: str, table: pa.Table, used: set[str]) -> pa.Table:
    """Return the columns that are not ``used``, with the types that they have after a round trip through Parquet."""
    extra = table.select([name for name in table.column_names if name not in used])
    if clashes := [name for name in extra.column_names if name in COLUMNS]:
        advice = ", or use --key-column key" if clashes == ["key"] else ""
        raise UsageError(
            f"--pairs {uri} has columns with the names of output columns: {', '.join(clashes)}; rename them{advice}"
        )
    if not extra.num_columns:
        return extra
    plain = pa.table({name: _plain_values(extra[name]) for name in extra.column_names})
    try:
        file = io.BytesIO()
        pq.write_table(plain.schema.empty_table(), file)
        read = pq.read_schema(pa.BufferReader(file.getvalue()))
        return plain.cast(pa.schema([(field.name, field.type) for field in read]))
    except pa.ArrowException as error:
        raise UsageError(f"--pairs {uri} has a column that Parquet cannot store; remove it ({error})") from error


def _plain_values(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if isinstance(column.type, pa.BaseExtensionType):
        return column.cast(column.type.storage_type)
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
