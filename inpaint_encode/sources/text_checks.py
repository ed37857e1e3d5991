"""Checks of text from lists of pairs, before a parser reads it: encoding, nesting and quotation marks.

Arrow's parser of JSON crashes on deeply nested values, and on a ``null`` in place of an object. It needs quadratic time
for values that are nested less deep.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable

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
_NULL_AFTER_OBJECT = re.compile(rb"\}[ \t\r\n]*n")
_BETWEEN_OBJECTS = np.zeros(256, bool)
_BETWEEN_OBJECTS[list(b" \t\r\n}")] = True
_BRACKETS = np.zeros(256, np.int8)
_BRACKETS[[ord("["), ord("{")]] = 1
_BRACKETS[[ord("]"), ord("}")]] = -1


class TextError(ValueError):
    """A line cannot be parsed: its number, and a sentence."""

    def __init__(self, line: int, sentence: str) -> None:
        super().__init__(line, sentence)
        self.line, self.sentence = line, sentence


class Text:
    """Whole lines of a file.

    Args:
        text: the lines.
        count_lines: returns the number of the lines before them in the file; called for errors only.
    """

    def __init__(self, text: bytes, count_lines: Callable[[], int] = lambda: 0) -> None:
        self.text, self._count_lines = text, count_lines

    def part(self, start: int, end: int) -> Text:
        """Return some bytes of the lines."""
        return Text(self.text[start:end], lambda: self.line_of(start) - 1)

    def line_of(self, position: int) -> int:
        """Return the number of the line in the file that contains the byte at ``position``; the first line is 1."""
        return self._count_lines() + 1 + self.text.count(b"\n", 0, position)


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
    """Raise TextError if a value of JSONL is not an object, or is nested too deep, or a long line has several objects.

    If each line is ``{...}``, a value cannot go on in the next line, so a line is nested at most as deep as it has
    opening brackets. Only lines with many brackets are scanned then, and else all lines are.
    """
    if _is_flat(lines.text):
        return
    text = np.frombuffer(lines.text, np.uint8)
    ends = np.flatnonzero(text == ord("\n"))
    if not lines.text.endswith(b"\n"):
        ends = np.append(ends, len(text))
    starts = np.append(0, ends[:-1] + 1)
    filled = np.flatnonzero(ends > starts)
    lasts = ends[filled] - 1
    lasts -= (text[lasts] == ord("\r")) & (lasts > starts[filled])
    opened = np.searchsorted(ends, np.flatnonzero((text | 0x20) == ord("{")))
    scanned = np.bincount(opened, minlength=len(ends)) > MAX_NESTING
    scanned |= ends - starts > LONG_LINE_BYTES
    is_object = (text[starts[filled]] == ord("{")) & (text[lasts] == ord("}"))
    if not is_object.all() or _NULL_AFTER_OBJECT.search(lines.text):
        _check_structure(lines)
    for line in np.flatnonzero(scanned).tolist():
        is_long = bool(ends[line] - starts[line] > LONG_LINE_BYTES)
        _check_structure(lines.part(starts[line], ends[line]), is_long=is_long)


def _is_flat(text: bytes) -> bool:
    """Whether each line is a short ``{...}``, and all lines have few more brackets than one each; a fast test."""
    levels, step = np.frombuffer(text, np.uint8), LONG_LINE_BYTES // 2
    count = text.count(b"}\n{") + 1
    return bool(
        text.startswith(b"{")
        and text.endswith(b"}\n")
        and np.count_nonzero(levels == ord("\n")) == count
        and np.count_nonzero((levels | 0x20) == ord("{")) - count < MAX_NESTING  # "[" is "{" without this bit
        and not _NULL_AFTER_OBJECT.search(text)
        and all(text.find(b"\n", start, start + step) >= 0 for start in range(0, len(text) - step, step))
    )


def _check_structure(lines: Text, *, is_long: bool = False) -> None:
    """Check the brackets outside of strings, and the names and the number of objects of a long line."""
    text = np.frombuffer(_JSON_STRING.sub(b'"', lines.text.removeprefix(codecs.BOM_UTF8)), np.uint8)
    deltas = _BRACKETS[text]
    depth = np.cumsum(deltas, dtype=np.int32)
    if (too_deep := depth > MAX_NESTING).any():
        line = int(np.count_nonzero(text[: too_deep.argmax()] == ord("\n")))
        raise TextError(
            lines.line_of(0) + line, f"its values are nested more than {MAX_NESTING} deep; write deep values as strings"
        )
    if (other := (depth <= 0) & ~_BETWEEN_OBJECTS[text]).any():
        line = int(np.count_nonzero(text[: other.argmax()] == ord("\n")))
        raise TextError(lines.line_of(0) + line, 'it is not an object such as {"image": "a.jpg", "mask": "a.png"}')
    if is_long and np.count_nonzero((depth == 0) & (deltas < 0)) > 1:
        raise TextError(lines.line_of(0), "it has several objects; write one object a line")
    if is_long and np.count_nonzero(text == ord(":")) > MAX_NAMES:
        raise TextError(lines.line_of(0), f"it has more than {MAX_NAMES:,} names; write large values as strings")


def find_open_quote(text: bytes) -> int:
    """Return where the quoted value starts that is open at the end of some lines of CSV; -1 if there is none."""
    at = 0
    while (at := text.find(b'"', at)) >= 0:
        if at and text[at - 1] not in b",\r\n":
            at += 1  # a mark within a value that is not quoted
        elif quoted := _QUOTED_VALUES.match(text, at):
            at = quoted.end()
        else:
            return at
    return -1


def end_of_csv_lines(text: bytes) -> int:
    """Return the number of bytes of the whole lines at the start of some lines of CSV; a quoted value may have several.

    Each byte is read at most twice: a search backward from each open quotation mark would need quadratic time.
    """
    last = text.rfind(b"\n") + 1
    if find_open_quote(text[:last]) < 0:
        return last
    at = unquoted = end = 0
    while (at := text.find(b'"', at, last)) >= 0:
        if at and text[at - 1] not in b",\r\n":
            at += 1
            continue
        end = text.rfind(b"\n", unquoted, at) + 1 or end
        if not (quoted := _QUOTED_VALUES.match(text, at, last)):
            return end
        end = quoted.end("newline") if quoted["newline"] else end
        at = unquoted = quoted.end()
    return end
