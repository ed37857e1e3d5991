"""An output of a source of pairs: the product plans and commits it, and only the rows are not encoded but random."""

import json
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from inpaint_encode.core.chunk import Pair, Reject
from inpaint_encode.output import plan
from inpaint_encode.output.lease import acquire_lease
from inpaint_encode.output.notes import CHUNK_KEY
from inpaint_encode.output.report import RunStats, write_report
from inpaint_encode.output.resume import Remaining, job_record, open_output
from inpaint_encode.output.resume import row_metadata as job_metadata
from inpaint_encode.output.rows import rejects_table
from inpaint_encode.schema import DUPLICATE_KEY, EXTRA_COLUMNS, RECEIPT
from inpaint_encode.sources import open_source
from tests.metadata import VAE
from tests.rows import encoded_pair, groups_of

Line = dict[str, Any]


class ListedOutput:
    """An output and its list of pairs, or its two prefixes.

    Args:
        folder: for both.
        make_job: the fixture.
        chunk_rows: pairs in a chunk.
        rejected: keys of pairs that are rejected.
    """

    def __init__(self, folder: Path, make_job: Any, chunk_rows: int = 3, rejected: Collection[str] = ()) -> None:
        self.output, self.list = folder / "out", folder / "pairs.jsonl"
        self._make_job, self._chunk_rows, self._rejected = make_job, chunk_rows, rejected
        self.source: Line = {"images": "", "masks": "", "pairs": str(self.list)}
        self.encoded: list[str] = []
        """Names of the chunks that the last `encode` has committed."""

    def write_list(self, lines: list[Line]) -> None:
        self.list.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def encode(self, commits: int = 1_000, **options: Any) -> dict[str, Any]:
        """Run the job; stop without an end after so many commits, as if it was killed."""
        output = str(self.output)
        job = self._make_job(output=output, chunk_rows=self._chunk_rows, **self.source, **options)
        metadata, source = job_metadata(job.rows, job.decoding, VAE), open_source(job.source)
        record, self.encoded, receipts = job_record(job, metadata, source.extra_columns), [], []
        with acquire_lease(f"{output}/_lease.json", print) as lease:
            state, inventory = open_output(output, record, overwrite=False, token=lease.token)
            left = Remaining(state, inventory, job, source)
            chunks = dict(left.done)
            for table in left.work():
                for work in table.to_pylist():
                    if len(self.encoded) == commits:
                        return {}
                    chunks[work["chunk"]] = result = self._commit(state, work, metadata)
                    values = {**work, **result.to_receipt(), "counters": [], "fatal": None}
                    receipts.append({name: values[name] for name in RECEIPT.names})
                    self.encoded.append(work["chunk"])
            if receipts:
                state.write_receipts(f"2026-{lease.token[:4]}", 0, receipts)
            left.finish(chunks, print)
            left_out = left.left_out(source.left_out)
            stats = RunStats.of(chunks.values()), RunStats()
            return write_report(f"{output}/_report.json", record, left.planned(), left_out, *stats)

    def _commit(self, state: Any, work: Line, metadata: Any) -> Any:
        pairs = plan.read_chunk(work["part"], work["chunk"], work["hash"])
        pairs = pairs.filter(pairs["encode"]) if work["keep"] else pairs
        kind = pairs.schema.field(EXTRA_COLUMNS).type if EXTRA_COLUMNS in pairs.column_names else None
        rows, extra, rejects = [], [], []
        for one in pairs.to_pylist():
            pair = Pair(*(one[name] for name in Pair._fields))
            if one["error"]:
                rejects.append(Reject(pair, DUPLICATE_KEY, one["error"]))
            elif one["key"] in self._rejected:
                rejects.append(Reject(pair, "image.truncated", "it ends early"))
            else:
                rows.append(random_row(pair))
                extra.append(one.get(EXTRA_COLUMNS))
        groups = groups_of(rows, metadata, extra if kind else None, kind)
        return state.commit(work, *groups, rejects_table(rejects))

    def keys(self) -> list[str]:
        """Return the keys of all rows and rejects, sorted."""
        found = []
        for path in self.output.glob("*.parquet"):
            table = pq.read_table(path, columns=["key"])
            rejects = json.loads(pq.read_schema(path).metadata[CHUNK_KEY])["rejected"]
            found += [*table["key"].to_pylist(), *(one["key"] for one in rejects)]
        return sorted(found)

    def data_files(self) -> dict[str, tuple[int, bytes]]:
        """Return the times and the contents of all data files."""
        return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in self.output.glob("*.parquet")}


def random_row(pair: Pair) -> Any:
    """Return a row whose size and values depend on the key; a reader finds versions where the source has none."""
    rng = np.random.default_rng(zlib.crc32(pair.key.encode()))
    height, width = rng.integers(2, 9, 2).tolist()
    samples = rng.normal(size=(4, height, width)).astype(np.float32)
    mask = rng.integers(0, 2, (8 * height, 8 * width), np.uint8)
    versions = {"image_version": pair.image_version or "5-1", "mask_version": pair.mask_version or "6-1"}
    return encoded_pair(pair.key, samples, mask, pair=pair._replace(**versions))
