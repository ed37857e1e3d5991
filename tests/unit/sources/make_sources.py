"""What tests of sources share: images, manifests, Parquet files and tars, and the pairs that are read from them."""

import io
import json
import random
import tarfile
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from inpaint_encode.settings import Source
from inpaint_encode.sources import PairBatch, PairSource, Slice, open_source
from inpaint_encode.stores import storage


def touch(folder, *names):
    """Write files that hold their names."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def noise(seed: object, size: int = 6_000) -> bytes:
    """Return bytes that depend on the seed only."""
    return random.Random(str(seed)).randbytes(size)


def embedded(name: object, *, path: bool = False) -> dict:
    """Return a value of an image column: its bytes, or only its path."""
    return {"bytes": None if path else noise(name), "path": f"files/{name}"}


def write_parquet(uri: str, columns: dict, group: int = 4) -> str:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, row_group_size=group)
    return storage.write(uri, file.getvalue())


def write_tar(uri: str, members: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> str:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return storage.write(uri, file.getvalue())


def sample(name: str, masks: tuple[str, ...] = ("mask",)) -> dict[str, bytes]:
    files = {f"{name}.{mask}.png": noise(f"{name}{mask}") for mask in masks}
    return {f"{name}.jpg": noise(name, 200_000), **files, f"{name}.json": json.dumps({"of": name}).encode()}


LINES = [
    {"image": "a/1.jpg", "mask": "a/1.png", "caption": "eins", "id": 7},
    {"image": "./b/2.jpg", "mask": "m/x.png", "caption": None, "id": 8},
    {"image": "a/1.jpg", "mask": "m/y.png", "caption": "zwei", "id": 9},
    {"image": "s3://other/b/2.jpg", "mask": "file:///m/z.png", "caption": "drei", "id": 10},
]


def write_manifest(path, lines):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    elif path.suffix == ".csv":
        header = ",".join(lines[0])
        lines = [",".join("" if value is None else str(value) for value in line.values()) for line in lines]
        path.write_text("\n".join([header, *lines, ""]))
    else:
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(lines), path)
    return path


def read_all(source: PairSource, known: Mapping[str, Slice] | None = None) -> pa.Table:
    """Return the pairs of all batches."""
    return pa.concat_tables(batch.pairs for batch in source.batches(known or {}))


def read_batches(source: Source, known: Mapping[str, Slice] | None = None) -> list[PairBatch]:
    return list(open_source(source).batches(known or {}))


def found_pairs(source: Source) -> list[dict]:
    """Return the pairs as the source yields them."""
    return read_all(open_source(source)).to_pylist()


def triples(source: Source, folder) -> list[tuple[str, str, str]]:
    """``key, image, mask``, paths relative to the folder."""
    return [
        (pair["key"], pair["image_uri"].removeprefix(f"{folder}/"), pair["mask_uri"].removeprefix(f"{folder}/"))
        for pair in found_pairs(source)
    ]
