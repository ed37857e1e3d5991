"""The printed result: every check, all counts, the first problems."""

import io

from rich.console import Console

from inpaint_encode.tools.verify.findings import CHECKS, ChunkFindings, Problem, ReencodeResult, VerifyResult
from inpaint_encode.tools.verify.table import MAX_PROBLEMS, show


def text_of(result: VerifyResult) -> str:
    console = Console(record=True, width=160, file=io.StringIO())
    show(result, console)
    return console.export_text()


def test_the_first_problems_are_listed_and_all_are_counted():
    problems = [Problem("samples", f"/out/{chunk:08}.parquet", "has wrong rows", chunk) for chunk in range(25)]
    text = text_of(VerifyResult("/out", 30, 60, problems=problems, repairs=["25 damaged chunks removed"]))
    assert all(check in text for check in CHECKS if check != "reencode")
    assert "reencode" not in text
    assert "25 problems" in text and "… and 5 more" in text
    assert text.count("has wrong rows") == MAX_PROBLEMS == text.count(".parquet")
    assert "/out/0" not in text
    assert "repair: 25 damaged chunks removed" in text


def test_the_counts_of_pairs_and_of_compared_rows():
    findings = {chunk: ChunkFindings(chunk, 0, 2, {"image.truncated": 1}) for chunk in range(2)}
    result = VerifyResult("/out", 3, 1_000, findings, incomplete={1})
    result.reencoded = ReencodeResult(rows=1, changed=2, largest=0.25, other_masks=0)
    text = text_of(result)
    assert "1,000 pairs planned in 3 chunks: 2 encoded, 1 rejected (1 image.truncated)" in text
    assert "1 of 3 chunks not encoded yet" in text
    sentence = "1 row encoded again: samples differ by at most 0.25, noise_masks are equal"
    assert f"{sentence}; 2 sources changed since, not compared" in text
    assert "reencode" in text
