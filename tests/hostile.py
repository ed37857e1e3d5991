"""Hostile files: lists, tars, safetensors, and the notes, footers and plan of an output.

Run as a script, it gives them to commands one after another and prints each outcome as a line of JSON. The script runs
in a process of its own with a limit for its memory and an alarm, because a parser may crash, hang or take all memory.
"""

import io
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from inpaint_encode.cli import main as run_command
from tests.mutations import cut, flipped, without_a_stretch, zeroed

ROOT = Path(__file__).parents[1]
HANG_S = 10
MEMORY_BYTES = 10**9

EXPECTED = {"source", "vae", "output"}
"""Kinds of files for which each error is an expected one, with a sentence of its own."""

DEEP = 1_000
NUMBERS = (-1, 0, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.5, 1e308, float("nan"), float("inf"))
STRINGS = ("", "\0", "\ud800", "x" * 10_000, "../../etc/passwd", "/etc/passwd", "s3://stranger/x", "1e999", "0" * 32)
TREES = ([], {}, [[]], [None], {"": None}, [{}] * 50, {"a": {"a": {"a": [1]}}}, ["a", 1], [1] * 1_000)
VALUES: tuple[Any, ...] = (None, True, *NUMBERS, *STRINGS, *TREES)
MARKS = (
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b'"',
    b'""',
    b"'",
    b",",
    b"\n",
    b"\r",
    b"{}",
    b"[]",
    b"-",
    b":",
    b"}",
    b"]",
)
TEXTS = (b"[" * DEEP, b'{"a":' * DEEP, b"9" * 5_000, b"," * 3_000, b"x" * 100_000, b"../", b"1e999", b"NaN", b"\\ud800")


def in_json(data: bytes, rng: np.random.Generator) -> bytes:
    """Replace one value of a JSON text, at any depth, or a name."""
    try:
        tree = json.loads(data)
    except ValueError:
        return flipped(data, rng)
    places: list[tuple[Any, Any]] = []
    stack = [tree]
    while stack:
        node = stack.pop()
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        places += [(node, key) for key, _ in items]
        stack += [value for _, value in items]
    value = VALUES[rng.integers(len(VALUES))]
    if not places or not rng.integers(30):
        return json.dumps(value).encode()
    node, key = places[rng.integers(len(places))]
    if isinstance(node, dict) and not rng.integers(5):
        node[f"{key}x"] = node.pop(key)
    elif not rng.integers(5):
        del node[key]
    else:
        node[key] = value
    return json.dumps(tree).encode()


def with_text(data: bytes, rng: np.random.Generator) -> bytes:
    """Insert a text that parsers fail at."""
    at = rng.integers(0, len(data) + 1)
    return data[:at] + (*MARKS, *TEXTS)[rng.integers(len(MARKS) + len(TEXTS))] + data[at:]


def empty(data: bytes, rng: np.random.Generator) -> bytes:
    return (b"", b"\n", b"null", b"PAR1", data + data, data[::-1])[rng.integers(6)]


BYTES = (flipped, cut, without_a_stretch, zeroed, with_text, empty)


def any_of(*mutations: Callable[[bytes, np.random.Generator], bytes]) -> Callable[[bytes, np.random.Generator], bytes]:
    return lambda data, rng: mutations[rng.integers(len(mutations))](data, rng)


def jsonl(data: bytes, rng: np.random.Generator) -> bytes:
    """Change one line."""
    lines = data.splitlines(keepends=True)
    at = rng.integers(len(lines))
    lines[at] = in_json(lines[at], rng) + b"\n"
    return b"".join(lines)


def tar_header(data: bytes, rng: np.random.Generator) -> bytes:
    """Change a field of a header, and make its checksum right."""
    changed = bytearray(data)
    start = 512 * int(rng.integers(0, max(1, len(data) // 512)))
    header = changed[start : start + 512]
    field = [(0, 100), (124, 136), (156, 157), (157, 257), (257, 265), (345, 500), (482, 483)][rng.integers(7)]
    if field == (156, 157):
        header[156:157] = b"01234567LKxgXSDMNV\0\xff"[rng.integers(20) :][:1]
    else:
        width = field[1] - field[0]
        value = (b"\xff" * width, b"\x80" + b"\x7f" * width, b"7" * width, b"-1", b"../" * 9, rng.bytes(width), b"")
        header[field[0] : field[1]] = value[rng.integers(len(value))][:width].ljust(width, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    changed[start : start + 512] = header
    return bytes(changed)


def safetensors_header(data: bytes, rng: np.random.Generator) -> bytes:
    """Change the header's JSON or its length."""
    (length,) = struct.unpack("<Q", data[:8])
    text = in_json(data[8 : 8 + length], rng)
    stated = int(rng.choice([len(text)] * 5 + [0, 1, len(text) + 1, 2**40])) if rng.integers(20) else 2**64 - 1
    return struct.pack("<Q", stated) + text + data[8 + length :]


def parquet_footer(data: bytes, rng: np.random.Generator) -> bytes:
    """Change bytes of the footer, or a value of the JSON in it."""
    if rng.integers(2):
        (length,) = struct.unpack("<I", data[-8:-4])
        start = max(4, len(data) - 8 - length)
        return data[:start] + any_of(flipped, zeroed)(data[start:], rng)
    table = pq.read_table(pa.BufferReader(data))
    notes = dict(table.schema.metadata or {})
    if notes:
        key = sorted(notes)[rng.integers(len(notes))]
        notes[key] = any_of(in_json, with_text)(notes[key], rng)
    out = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(notes), out, compression="zstd")
    return out.getvalue()


MUTATIONS = {
    ".jsonl": any_of(*BYTES, jsonl, jsonl, jsonl),
    ".csv": any_of(*BYTES),
    ".tar": any_of(*BYTES, tar_header, tar_header, tar_header, tar_header),
    ".safetensors": any_of(*BYTES, safetensors_header, safetensors_header, safetensors_header),
    ".json": any_of(*BYTES, in_json, in_json, in_json, in_json),
    ".parquet": any_of(*BYTES, parquet_footer, parquet_footer, parquet_footer),
    "": any_of(*BYTES),
}
"""By the suffix of a file's name."""


def outcome(command: list[str] | Callable[[], object]) -> dict[str, Any]:
    """Run a command, or a function as a command, in this process."""
    module, printed = sys.modules["inpaint_encode.cli.main"], io.StringIO()
    run = module._run
    if not isinstance(command, list):
        module._run = lambda _tokens: command()
    code: Any = 0
    with redirect_stdout(io.StringIO()), redirect_stderr(printed):
        try:
            run_command(command if isinstance(command, list) else ["verify"])
        except SystemExit as end:
            code = end.code
        finally:
            module._run = run
    return {"code": code, "error": printed.getvalue()[-6_000:]}


def verify(output: Path) -> None:
    """Check an output in this process, as ``verify`` does in Ray's tasks."""
    from inpaint_encode.output.resume import metadata_of_job
    from inpaint_encode.output.state import OutputState
    from inpaint_encode.tools.verify.chunk_checks import check_chunk
    from inpaint_encode.tools.verify.output_checks import check_output
    from inpaint_encode.tools.verify.pipeline import _read_job

    job = _read_job(str(output))
    state = OutputState(str(output), job["job"], "", tuple(job["replaces"]))
    inventory, metadata = state.inventory(), metadata_of_job(job)
    is_old = job.get("layout", 1) == 1
    check_output(
        state, inventory, metadata, lambda chunks: (check_chunk(c, state, metadata) for c in chunks), is_old=is_old
    )


def cases(folder: Path, kinds: list[str]) -> list[tuple[str, Path, Callable[[Path], Any]]]:
    """Return the kind, the original file and the command of each kind of case."""
    lists = [folder / f"list.{suffix}" for suffix in ("jsonl", "csv", "tar", "parquet")]
    found: list[tuple[str, Path, Callable[[Path], Any]]] = [
        ("source", path, lambda changed: ["plan", "--pairs", str(changed), "--as-json"]) for path in lists
    ]
    vae = ["plan", "--pairs", str(folder / "list.csv"), "--vae", str(folder / "case/vae")]
    found += [("vae", path, lambda _: vae) for path in sorted((folder / "vae").iterdir())]
    output = folder / "out"
    for path in sorted(path for path in output.rglob("*") if path.is_file()):
        found.append(("output", path, lambda _: ["info", str(folder / "case/out")]))
        found.append(
            ("output", path, lambda _: ["report", str(folder / "case/out"), "--html", str(folder / "page.html")])
        )
        found.append(("output", path, lambda _: lambda: verify(folder / "case/out")))
    return [one for one in found if one[0] in kinds]


def memory(name: str) -> int:
    """Return a figure of this process in bytes."""
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def run_cases(folder: Path, kinds: list[str], start: int, end: int) -> None:
    """Run the cases from ``start`` to ``end``; print a line before each and after it."""
    possible = cases(folder, kinds)
    for tree in ("out", "vae"):
        shutil.copytree(folder / tree, folder / "case" / tree, dirs_exist_ok=True)
    for _, path, command in possible[:5]:  # imports are not a case's time
        outcome(command(path))
    resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + 4 * MEMORY_BYTES,) * 2)
    before = memory("VmHWM")
    for index in range(start, end):
        rng = np.random.default_rng((7, index))
        choose = random.Random(index)
        kind = kinds[index % len(kinds)]
        _, path, command = choose.choice([one for one in possible if one[0] == kind])
        original = path.read_bytes()
        changed = folder / "case" / path.relative_to(folder)
        data = MUTATIONS.get(path.suffix, MUTATIONS[""])(original, rng)
        changed.write_bytes(data)
        print(json.dumps({"index": index, "kind": kind, "file": str(path.relative_to(folder))}), flush=True)
        signal.alarm(HANG_S)
        begun = time.monotonic()
        result = outcome(command(changed))
        signal.alarm(0)
        added = {"seconds": time.monotonic() - begun, "memory": memory("VmHWM") - before}
        print(json.dumps(result | added), flush=True)
        changed.write_bytes(original)


def run_all(folder: Path, kinds: list[str], count: int, start: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the outcome of each case. A process that dies is replaced; its case has the signal as its code."""
    while start < count:
        script = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "tests.hostile",
            folder,
            ",".join(kinds),
            str(start),
            str(count),
        ]
        environment = {**os.environ, "TMPDIR": str(folder)}
        with subprocess.Popen(script, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment) as process:
            case: dict[str, Any] = {}
            for line in process.stdout:
                found = json.loads(line)
                case = found if "index" in found else case | found
                if "code" in case:
                    start = case["index"] + 1
                    yield case
        if process.returncode:
            yield case | {"code": process.returncode, "error": "the process died", "seconds": 0.0, "memory": 0}
            if "index" not in case:
                return
            start = case["index"] + 1


def check(case: dict[str, Any]) -> str:
    """Return what is wrong with an outcome; empty if nothing is."""
    errors = [line for line in case["error"].splitlines() if line.startswith("error: ")]
    if case["code"] not in (0, 1, 2, 3, 4):
        return f"exit code {case['code']}"
    if "Traceback" in case["error"] or (case["kind"] in EXPECTED and "failed unexpectedly" in case["error"]):
        return "an error that no part expects"
    if len(errors) != bool(case["code"]):
        return f"{len(errors)} errors"
    if case["seconds"] > HANG_S or case["memory"] > MEMORY_BYTES:
        return f"{case['seconds']:.1f} s, {case['memory'] / 1e6:,.0f} MB"
    return ""


if __name__ == "__main__":
    run_cases(Path(sys.argv[1]), sys.argv[2].split(","), int(sys.argv[3]), int(sys.argv[4]))
