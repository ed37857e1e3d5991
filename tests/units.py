"""Outputs with units in tests: planned and committed by the product's own code, without a VAE and without Ray."""

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from inpaint_encode.core.chunk import Reject
from inpaint_encode.output import plan
from inpaint_encode.output.index import IndexWriter
from inpaint_encode.output.lease import acquire_lease
from inpaint_encode.output.plan_log import PlanLog
from inpaint_encode.output.resume import LAYOUT
from inpaint_encode.output.rows import rejects_table
from inpaint_encode.output.state import ChunkResult, OutputState
from inpaint_encode.schema import EXTRA_COLUMNS, RECEIPT, SOURCE_PAIRS
from inpaint_encode.stores import storage
from tests.exports import JOB, METADATA, OWN_COLUMNS
from tests.metadata import changed
from tests.rows import encoded_pair, groups_of

_EXTRA = pa.field(EXTRA_COLUMNS, OWN_COLUMNS)


class UnitOutput:
    """An output that a test plans and encodes unit by unit.

    Args:
        uri: folder or prefix.
        sides: height and width of the latents; random and different by default.
        changes: other than `METADATA`.
    """

    def __init__(self, uri: object, sides: tuple[int, int] | None = None, **changes: Any) -> None:
        self.uri, self.sides = str(uri), sides
        self.metadata = changed(METADATA, **changes)
        self.state = OutputState(self.uri, JOB, "0" * 32)
        self.log = PlanLog(self.state, pa.schema([_EXTRA]))
        job = {"job": JOB, "replaces": [], "created": "2026-01-02T03:04:05+00:00", "layout": LAYOUT}
        rows = self.metadata.to_dict()
        job |= {"rows": rows, "vae_source": rows.pop("vae_source"), "source": {"pairs": "list.jsonl"}}
        storage.write(f"{self.uri}/_job.json", json.dumps(job).encode())
        self.results: dict[str, ChunkResult] = {}
        self._receipts: list[dict[str, Any]] = []

    def plan(self, keys: Sequence[str], chunk_rows: int) -> list[str]:
        """Plan a unit; return the names of its chunks."""
        about = dict.fromkeys(("image_version", "mask_version"), "") | dict.fromkeys(("mask_index", "image_bytes"), 0)
        pairs = [
            {
                **about,
                "key": key,
                "image_uri": f"s3://in/{key}.jpg",
                "mask_uri": "m",
                "line": line,
                EXTRA_COLUMNS: _own(key),
            }
            for line, key in enumerate(keys)
        ]
        table = pa.Table.from_pylist(pairs, SOURCE_PAIRS.append(_EXTRA))
        return self.log.append(plan.split_into_chunks(table, chunk_rows, 2**40), ())

    def revise(self, keys: Collection[str]) -> list[str]:
        """Plan to encode the rows of the first unit with these keys again; return the names of their chunks."""
        current = self.log.read_unit(0)
        revised = current.filter(pa.array([key in keys for key in current["key"].to_pylist()]))
        names = [name for name in current.column_names if name not in ("chunk", "line", "encode", "error")]
        undecided = pa.array([], pa.int32())
        return self.log.revise(0, plan.revise(current, revised.select(names), pa.array([], pa.string()), undecided))

    def encode(self, names: Sequence[str], rejected: Collection[str] = (), seed: int = 0, **changes: Any) -> None:
        """Commit chunks of random rows.

        Args:
            names: of the chunks.
            rejected: keys of pairs that are rejected.
            seed: of the rows.
            changes: of the metadata.
        """
        metadata = changed(self.metadata, **changes)
        for name in names:
            planned = self.log.chunks[name]
            work = {"chunk": name, "revision": planned.revision, "hash": planned.hash, "part": planned.part}
            work["keep"] = planned.revision > 0
            pairs = [pair for pair in plan.read_chunk(planned.part, name, planned.hash).to_pylist() if pair["encode"]]
            rows = [self._row(pair["key"], seed) for pair in pairs]
            kept = [row for row in rows if row.pair.key not in rejected]
            rejects = [Reject(row.pair, "image.truncated", "cut") for row in rows if row.pair.key in rejected]
            groups = groups_of(kept, metadata, [_own(row.pair.key) for row in kept], OWN_COLUMNS)
            result = self.state.commit(work, *groups, rejects_table(rejects), check=lambda: None)
            self.results[name] = result
            self._receipts.append({**work, **result.to_receipt(), "counters": [], "fatal": None})

    def keep_receipts(self) -> None:
        """Write the receipts of all chunks that were committed."""
        self.state.write_receipts("1", 0, [{name: one[name] for name in RECEIPT.names} for one in self._receipts])

    def write_index(self) -> None:
        """Write the index of all units and of the output, as a run does at its end."""
        with acquire_lease(f"{self.uri}/_lease.json", print) as lease:
            state = replace(self.state, token=lease.token)
            IndexWriter(state, self.log, []).complete(self.results, state.inventory())

    def _row(self, key: str, seed: int) -> Any:
        rng = np.random.default_rng([seed, *key.encode()])
        sides = self.sides or tuple(rng.integers(1, 5, 2).tolist())
        scale, dtype = self.metadata.vae.vae_scale_factor, self.metadata.samples_dtype
        values = rng.standard_normal((3, self.metadata.vae.latent_channels, *sides)).astype(dtype)
        height, width = (side * scale for side in sides)
        top, left = (int(rng.integers(0, size)) for size in (height, width))
        mask = np.zeros((height, width), np.uint8)
        mask[top : top + height // 2, left : left + width // 2] = 1
        tensors = {"original_samples": values[1], "latent_mask": values[2, :1]}
        return encoded_pair(key, values[0], mask, border=3, image_uri=f"s3://in/{key}.jpg", mask_uri="m", **tensors)


def _own(key: str) -> dict[str, Any]:
    return {"caption": f'«{key}»"\n', "scaling_factor": len(key), "tags": [key, "ü"]}
