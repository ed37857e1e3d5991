"""Counts of a result, its error if the output is not complete, and what is printed."""

import io
import re

import pytest
from rich.console import Console

from inpaint_encode.errors import IncompleteOutput
from inpaint_encode.tools.verify.findings import (
    CHECKS,
    MAX_PROBLEMS,
    ChunkFindings,
    PlannedChunk,
    Problem,
    ReencodeResult,
    VerifyResult,
    print_result,
)

PROBLEM = Problem("file", "/out/a.parquet", "cannot be read", 1)


def planned(chunks: int) -> dict[int, PlannedChunk]:
    return {chunk: PlannedChunk(chunk, 0, "/out/_plan/part", has_rejects=False) for chunk in range(chunks)}


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
    result = VerifyResult("/out", planned(4), 12, incomplete=incomplete, problems=problems, repairs=repairs)
    with pytest.raises(IncompleteOutput, match=f"^/out is not complete: {re.escape(message)}"):
        result.check_complete()


def test_a_repaired_output_without_missing_chunks_is_complete():
    VerifyResult("/out", planned(4), 12, problems=[PROBLEM], repairs=[]).check_complete()


def test_incomplete_chunks_are_not_counted():
    findings = {chunk: ChunkFindings(chunk, 0, 2, {"image.truncated": 1}) for chunk in range(3)}
    result = VerifyResult("/out", planned(3), 9, findings, incomplete={1})
    assert (result.encoded, result.rejects) == (4, {"image.truncated": 2})


def text_of(result: VerifyResult) -> str:
    console = Console(record=True, width=160, file=io.StringIO())
    print_result(result, console)
    return console.export_text()


def test_the_first_problems_are_listed_and_all_are_counted():
    problems = [Problem("samples", f"/out/{chunk:08}.parquet", "has wrong rows", chunk) for chunk in range(25)]
    text = text_of(VerifyResult("/out", planned(30), 60, problems=problems, repairs=["25 damaged chunks removed"]))
    assert all(check in text for check in CHECKS if check != "reencode")
    assert "reencode" not in text
    assert "25 problems" in text and "… and 5 more" in text
    assert text.count("has wrong rows") == MAX_PROBLEMS == text.count(".parquet")
    assert "/out/0" not in text
    assert "repair: 25 damaged chunks removed" in text


def test_the_counts_of_pairs_and_of_compared_rows():
    findings = {chunk: ChunkFindings(chunk, 0, 2, {"image.truncated": 1}) for chunk in range(2)}
    result = VerifyResult("/out", planned(3), 1_000, findings, incomplete={1})
    result.reencoded = ReencodeResult(rows=1, changed=2, largest=0.25, other_masks=0)
    text = text_of(result)
    assert "1,000 pairs planned in 3 chunks: 2 encoded, 1 rejected (1 image.truncated)" in text
    assert "1 of 3 chunks not encoded yet" in text
    sentence = "1 row encoded again: samples differ by at most 0.25, noise_masks are equal"
    assert f"{sentence}; 2 sources changed since, not compared" in text
    assert "reencode" in text
