"""What tests of sources share: images, manifests, Parquet files and tars, and the pairs that are found in them."""

import io
import json
import random
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq

from inpaint_encode.output import plan
from inpaint_encode.schema import PAIRS
from inpaint_encode.settings import Source
from inpaint_encode.sources import find_pairs
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


def found_pairs(source: Source) -> list[dict]:
    """The pairs as the plan has them."""
    found = find_pairs(source)
    return found.with_uris(plan.added(PAIRS.empty_table(), found.pairs)).to_pylist()


def triples(found, folder):
    """``key, image, mask, mask_index``, paths relative to the folder, in the order of the plan."""
    table = found.with_uris(plan.added(PAIRS.empty_table(), found.pairs))
    uris = [[uri.removeprefix(f"{folder}/") for uri in table[f"{side}_uri"].to_pylist()] for side in ("image", "mask")]
    return list(zip(table["key"].to_pylist(), *uris, table["mask_index"].to_pylist(), strict=True))
