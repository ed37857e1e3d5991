"""The last stage, a Ray task: a chunk's rows and rejects become files, and the driver hears of it."""

from __future__ import annotations

import logging
from dataclasses import asdict

import pyarrow as pa

from inpaint_encode.core import mask_coverage
from inpaint_encode.errors import EncodeError
from inpaint_encode.job.transfer import ENCODED
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.output.parquet import data_groups, rejects_table
from inpaint_encode.output.state import Ledger
from inpaint_encode.schema import RECEIPT, data_schema

from .chunk import Chunk, Row

__all__ = ["commit"]

_LOG = logging.getLogger(__name__)


def commit(row: pa.Table, *, ledger: Ledger, metadata: RowMetadata) -> pa.Table:
    """Write a chunk of `schema.ENCODED` into the output; return its receipt, a row of `schema.RECEIPT`."""
    chunk = Chunk.unfolded(row, ENCODED)
    receipt: Row = dict.fromkeys(RECEIPT.names, 0) | {"errors": [], "version": "", "rejects_version": ""}
    receipt |= {"chunk": chunk.work["chunk"], "generation": chunk.work["generation"], "fatal": chunk.fatal}
    if chunk.fatal is None:
        try:
            with chunk.counters.timed("write"):
                encoded = chunk.whole(chunk.table)
                schema = data_schema(metadata, encoded.schema)
                rejects = rejects_table(chunk.table)
                committed = ledger.commit(chunk.work, data_groups(encoded, schema), schema, rejects)
            receipt |= {**asdict(committed), "errors": list(committed.errors.items())}
            for name, count in mask_coverage.counted(chunk.table["mask_coverage"].drop_null().to_numpy()):
                chunk.counters.add(name, count)
            _log(rejects, ledger.job)
        except (EncodeError, OSError) as error:
            receipt["fatal"] = f"{ledger.data_uri(chunk.work['chunk'])} cannot be written: {error}"
    receipt["counters"] = chunk.counters.items()
    return pa.Table.from_pylist([receipt], RECEIPT)


def _log(rejects: pa.Table, job: str) -> None:
    """One line a rejected pair, in this worker's log; its fields are what a log store can be asked for."""
    for reject in rejects.select(["key", "error", "message"]).to_pylist():
        _LOG.warning(
            "pair rejected",
            extra={"job": job, "key": reject["key"], "error": reject["error"], "reason": reject["message"]},
        )
