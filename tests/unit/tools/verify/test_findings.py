"""Counts of a result, its error if the output is not complete, and what is printed."""

import io
import re

import pytest
from rich.console import Console

from inpaint_encode.errors import IncompleteOutput
from inpaint_encode.output.plan import chunk_name
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

PROBLEM = Problem("file", "/out/a.parquet", "cannot be read", "000000-00001")


def planned(chunks: int) -> dict[str, PlannedChunk]:
    names = [chunk_name(0, number) for number in range(chunks)]
    return {name: PlannedChunk(name, 0, "", "", "/out/_plan/part", has_rejects=False) for name in names}


def found(chunks: int) -> dict[str, ChunkFindings]:
    names = [chunk_name(0, number) for number in range(chunks)]
    return {name: ChunkFindings(name, 0, "", 2, {"image.truncated": 1}) for name in names}


@pytest.mark.parametrize(
    ("problems", "incomplete", "repairs", "message"),
    [
        ([PROBLEM], set(), None, "1 problem; run verify with --repair, then run the same encode command again"),
        ([PROBLEM], {"2"}, None, "1 problem, 1 of 4 chunks not encoded yet; run verify with --repair"),
        ([], {"1", "2"}, None, "2 of 4 chunks not encoded yet; run the same encode command again"),
        ([PROBLEM], {"1"}, [], "1 of 4 chunks not encoded yet; run the same encode command again"),
    ],
)
def test_an_incomplete_output_is_an_error_with_advice(problems, incomplete, repairs, message):
    result = VerifyResult("/out", planned(4), 12, incomplete=incomplete, problems=problems, repairs=repairs)
    result.is_repaired = repairs is not None
    with pytest.raises(IncompleteOutput, match=f"^/out is not complete: {re.escape(message)}"):
        result.check_complete()


def test_a_repaired_output_without_missing_chunks_is_complete():
    VerifyResult("/out", planned(4), 12, problems=[PROBLEM], repairs=[], is_repaired=True).check_complete()


def test_incomplete_chunks_are_not_counted():
    result = VerifyResult("/out", planned(3), 9, found(3), incomplete={"000000-00001"})
    assert (result.encoded, result.rejects) == (4, {"image.truncated": 2})


def text_of(result: VerifyResult) -> str:
    console = Console(record=True, width=160, file=io.StringIO())
    print_result(result, console)
    return console.export_text()


def test_the_first_problems_are_listed_and_all_are_counted():
    problems = [Problem("samples", f"/out/{chunk}.parquet", "has wrong rows", str(chunk)) for chunk in range(25)]
    result = VerifyResult("/out", planned(30), 60, problems=problems, repairs=["remove a.parquet"])
    text = text_of(result)
    assert all(check in text for check in CHECKS if check != "reencode")
    assert "reencode" not in text
    assert "25 problems" in text and "… and 5 more" in text
    assert text.count("has wrong rows") == MAX_PROBLEMS == text.count(".parquet") - 1
    assert "/out/0" not in text
    assert "repair (not done yet): remove a.parquet" in text
    result.is_repaired = True
    assert "repair (done): remove a.parquet" in text_of(result)


def test_the_counts_of_pairs_and_of_compared_rows():
    result = VerifyResult("/out", planned(3), 1_000, found(2), incomplete={"000000-00001"})
    result.reencoded = ReencodeResult(rows=1, changed=2, largest=0.25, other_masks=0)
    text = text_of(result)
    assert "1,000 pairs planned in 3 chunks: 2 encoded, 1 rejected (1 image.truncated)" in text
    assert "1 of 3 chunks not encoded yet" in text
    sentence = "1 row encoded again: samples differ by at most 0.25, noise_masks are equal"
    assert f"{sentence}; 2 sources changed since, not compared" in text
    assert "reencode" in text
