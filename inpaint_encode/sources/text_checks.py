"""Checks of text from lists of pairs, before a parser reads it: encoding, nesting and quotation marks.

Arrow's parser of JSON crashes on deeply nested values, and needs quadratic time before it does.
"""

from __future__ import annotations

import codecs
import re
from typing import NamedTuple

import numpy as np

MAX_NESTING = 32
"""Limit for objects and arrays within each other in JSONL. Arrow's messages between processes end at 64."""
MAX_NAMES = 200_000
"""Limit for the names in one long line of JSONL."""
LONG_LINE_BYTES = 2**16
"""Size from which the structure of a line of JSONL is checked."""

_QUOTED_VALUE = rb'"[^"]*+(?:""[^"]*+)*+"'
_QUOTED_VALUES = re.compile(_QUOTED_VALUE + rb"(?:(?:[,\r]|(?P<newline>\n))" + _QUOTED_VALUE + rb")*+")
_JSON_STRING = re.compile(rb'"[^"\\\n]*+(?:\\.[^"\\\n]*+)*+"?')
_BRACKETS = np.zeros(256, np.int8)
_BRACKETS[[ord("["), ord("{")]] = 1
_BRACKETS[[ord("]"), ord("}")]] = -1


class TextError(ValueError):
    """A line cannot be parsed: its number, and a sentence."""

    def __init__(self, line: int, sentence: str) -> None:
        super().__init__(line, sentence)
        self.line, self.sentence = line, sentence


class Text(NamedTuple):
    """Whole lines of a file."""

    text: bytes
    line: int
    """Number of the first line in the file; the file's first line is 1."""

    def line_of(self, position: int) -> int:
        """Return the number of the line that contains the byte at ``position``."""
        return self.line + self.text.count(b"\n", 0, position)


def check_encoding(lines: Text) -> None:
    """Raise TextError if lines have a NUL byte, or are not UTF-8."""
    text = lines.text
    if (at := text.find(b"\0")) >= 0:
        raise TextError(lines.line_of(at), "it has a NUL byte; write the file as UTF-8 text")
    if not text.isascii():
        try:
            codecs.utf_8_decode(text, "strict", True)
        except UnicodeDecodeError as error:
            line = lines.line_of(error.start)
            raise TextError(line, f"it is not UTF-8; write the file as UTF-8 ({error.reason})") from None


def check_json(lines: Text) -> None:
    """Raise TextError if values of JSONL are nested too deep, or a long line has too many names or several objects.

    If each line is ``{...}``, a value cannot go on in the next line, so a line is nested at most as deep as it has
    opening brackets. Only lines with many brackets are scanned then, and else all lines are.
    """
    text = np.frombuffer(lines.text, np.uint8)
    ends = np.flatnonzero(text == ord("\n"))
    if not lines.text.endswith(b"\n"):
        ends = np.append(ends, len(text))
    starts = np.append(0, ends[:-1] + 1)
    filled = np.flatnonzero(ends > starts)
    lasts = ends[filled] - 1
    lasts -= (text[lasts] == ord("\r")) & (lasts > starts[filled])
    opened = np.searchsorted(ends, np.flatnonzero((text | 0x20) == ord("{")))  # "[" is "{" without this bit
    scanned = np.bincount(opened, minlength=len(ends)) > MAX_NESTING
    scanned |= ends - starts > LONG_LINE_BYTES
    if ((text[starts[filled]] != ord("{")) | (text[lasts] != ord("}"))).any():
        _check_structure(lines)
    for line in np.flatnonzero(scanned).tolist():
        is_long = bool(ends[line] - starts[line] > LONG_LINE_BYTES)
        _check_structure(Text(lines.text[starts[line] : ends[line]], lines.line + line), is_long=is_long)


def _check_structure(lines: Text, *, is_long: bool = False) -> None:
    """Check the brackets outside of strings, and the names and the number of objects of a long line."""
    text = np.frombuffer(_JSON_STRING.sub(b"", lines.text), np.uint8)
    deltas = _BRACKETS[text]
    depth = np.cumsum(deltas, dtype=np.int32)
    if (too_deep := depth > MAX_NESTING).any():
        line = lines.line + int(np.count_nonzero(text[: too_deep.argmax()] == ord("\n")))
        raise TextError(line, f"its values are nested more than {MAX_NESTING} deep; write deep values as strings")
    if is_long and np.count_nonzero((depth == 0) & (deltas < 0)) > 1:
        raise TextError(lines.line, "it has several objects; write one object a line")
    if is_long and np.count_nonzero(text == ord(":")) > MAX_NAMES:
        raise TextError(lines.line, f"it has more than {MAX_NAMES:,} names; write large values as strings")


def scan_quotes(text: bytes) -> tuple[int, int]:
    """Find the end of the last whole line of CSV, and a quoted value that is not closed, in one pass.

    Returns:
        The number of bytes of the whole lines at the start, and where the quoted value starts that is open at the end;
        -1 if there is none.
    """
    at = unquoted = end = 0
    while (at := text.find(b'"', at)) >= 0:
        if at and text[at - 1] not in b",\r\n":
            at += 1  # a mark within a value that is not quoted
            continue
        end = text.rfind(b"\n", unquoted, at) + 1 or end
        if not (quoted := _QUOTED_VALUES.match(text, at)):
            return end, at
        end = quoted.end("newline") if quoted["newline"] else end
        at = unquoted = quoted.end()
    return text.rfind(b"\n", unquoted) + 1 or end, -1
