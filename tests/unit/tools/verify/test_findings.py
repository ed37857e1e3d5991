"""Findings as JSON, and what is said of an output that is not complete."""

import re

import pytest

from inpaint_encode.errors import IncompleteOutput
from inpaint_encode.tools.verify.findings import ChunkFindings, Problem, VerifyResult

PROBLEM = Problem("file", "/out/a.parquet", "cannot be read", 1)


def test_findings_survive_json():
    findings = ChunkFindings(3, None, 7, {"image.truncated": 2}, fatal="down")
    findings.add("keys", "/out/3.parquet", "has 1 repeated keys")
    assert ChunkFindings.from_json(findings.to_json()) == findings
    assert findings.problems == [Problem("keys", "/out/3.parquet", "has 1 repeated keys", 3)]


@pytest.mark.parametrize(
    ("problems", "incomplete", "repairs", "message"),
    [
        ([PROBLEM], set(), None, "1 problem; run verify with --repair, then run the same encode command again"),
        ([PROBLEM], {2}, None, "1 problem, 1 of 4 chunks not encoded yet; run verify with --repair"),
        ([], {1, 2}, None, "2 of 4 chunks not encoded yet; run the same encode command again"),
        ([PROBLEM], {1}, [], "1 of 4 chunks not encoded yet; run the same encode command again"),
    ],
)
def test_an_incomplete_output_is_an_error_with_advice(problems, incomplete, repairs, message):
    result = VerifyResult("/out", 4, 12, incomplete=incomplete, problems=problems, repairs=repairs)
    with pytest.raises(IncompleteOutput, match=f"^/out is not complete: {re.escape(message)}"):
        result.check_complete()


def test_a_repaired_output_without_missing_chunks_is_complete():
    VerifyResult("/out", 4, 12, problems=[PROBLEM], repairs=[]).check_complete()


def test_incomplete_chunks_are_not_counted():
    findings = {chunk: ChunkFindings(chunk, 0, 2, {"image.truncated": 1}) for chunk in range(3)}
    result = VerifyResult("/out", 3, 9, findings, incomplete={1})
    assert (result.encoded, result.rejects) == (4, {"image.truncated": 2})
