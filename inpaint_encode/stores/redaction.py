"""Removes credentials and control characters from text before it is shown, logged or stored.

The functions are used where text leaves the program: the console, loggers, tables of rejects, JSON files and pages.
Code that makes a sentence need not know what a library's error quotes.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import traceback
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

MARK = "…"
"""Stands for a removed credential."""

_MIN_SECRET = 8
"""Shortest part of a credential, in characters, that is looked for: a shorter one occurs in ordinary text."""
_MIN_DOCUMENT_SECRET = 20
"""The same for a credential that is a JSON document or a PEM file, which has other words."""
_LONGEST_PLAIN_VALUE = 24
"""Longest value of an unknown query parameter that is shown; a longer one may be a token."""

_SECRET_NAME = re.compile(
    r"ACCESS_KEY|ACCOUNT_KEY|STORAGE_KEY|API_KEY|PRIVATE_KEY|SHARED_KEY|CREDENTIAL|SECRET|TOKEN|PASSWORD|PASSWD|"
    r"CONNECTION_STRING|SERVICE_ACCOUNT|(?:^|_)SAS(?:_|$)",
    re.IGNORECASE,
)
"""Names of environment variables whose values are credentials."""
_PATH_NAME = re.compile(r"_(?:FILE|PATH|DIR|URI|URL)$|^GOOGLE_(?:APPLICATION_CREDENTIALS|SERVICE_ACCOUNT)$")
"""Names of variables that match `_SECRET_NAME` and have a path."""

_URL = re.compile(r"(?P<start>(?:https?://|\burl: /)[^\s?#\"'<>]*+)(?:\?(?P<query>[^\s\"'<>]*+))?", re.IGNORECASE)
"""A URL with or without a query, or a path with a query as urllib3's errors print it."""
LOGIN = re.compile(
    r"(?<=://)(?:[^\s/?#\"'<>]+@|(?!arn:)[^\s/?#\"'<>@:\[]+:(?!\d{1,5}(?:[/?#\s]|$))[^\s?#\"'<>]{1,200}@)"
)
"""A login in a URI. Its password may have slashes, as secret keys of AWS have, though it should not."""
_SECRET_PARAMETER = re.compile(
    r"^(?:x-(?:amz|goog|oss)-.*|sk(?:oid|tid|t|e|s|v)|sig|signature|policy|expires|key-pair-id|.*access_?key_?id|googleaccessid|"
    r".*(?:token|secret|password|passwd|api-?_?key|auth|credential).*|key|pwd|sas|code|jwt)$",
    re.IGNORECASE,
)
# Text of a stranger may have megabytes, so each pattern needs linear time: what may be followed by something else is
# possessive, and a second alternative without ``kept`` skips a word that is no credential, with all of its parts.
_PATTERNS = (
    # Headers as libraries quote them: `Authorization: Bearer x`, `{'Authorization': b'AWS4-HMAC-SHA256 ...'}`.
    re.compile(
        r"(?P<kept>\b(?:proxy-)?authorization(?:\\?[\"']?\s*[:=]|\\?[\"']\s*,)\s*b?\\?[\"']?)[^\"'\r\n\\]+",
        re.IGNORECASE,
    ),
    re.compile(
        r"(?P<kept>\b(?:x-(?:amz|goog|ms)-(?>[\w-]*?(?:token|signature|credential|key|cookie|copy-source))[\w-]*+|"
        r"(?:set-)?cookie|x-api-key)\\?[\"']?\s*[:=,]\s*b?\\?[\"']?)[^\"'\s\\,&]+|\bx-(?:amz|goog|ms)-[\w-]*+",
        re.IGNORECASE,
    ),
    re.compile(r"(?P<kept>\b(?:bearer|basic|sharedkey|sharedaccesssignature) +)(?=\S*[\d=+/.])[\w+/=.~:-]{8,}", re.I),
    re.compile(r"(?P<kept>\bAWS4-HMAC-SHA256 +)[^\"'\r\n]+"),
    re.compile(r"(?P<kept>\bAWS )[A-Z0-9]{16,}:\S+"),
    # Parameters of a signature outside of a URL.
    re.compile(r"(?P<kept>\b(?:Credential|Signature|AccountKey|SharedAccessSignature|sig)=)[^\s&\"',;]+"),
    # Tokens whose form is known.
    re.compile(
        r"(?P<kept>)\b(?:hf_\w{16,}|(?:AKIA|ASIA)[A-Z0-9]{12,}|ya29\.[\w.-]+|gh[pousr]_\w{20,}|"
        r"eyJ[\w-]{8,}+\.[\w-]++(?:\.[\w-]*+)?)|\beyJ[\w-]*+"
    ),
    re.compile(r"(?P<kept>-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)", re.DOTALL),
)

_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Characters that move a terminal's cursor, change its state or the order of text: controls except tab and line feed,
marks of direction, lone surrogates."""

_remembered: set[str] = set()


def redacted(text: str) -> str:
    """Return ``text`` without credentials: `MARK` stands for each.

    Removes logins in URIs; signatures, tokens and long unknown values in the queries of URLs; values of credential
    variables of the environment, and what `remember_secret` was given; headers with credentials. Only ``http(s)://``
    URIs have queries; elsewhere a ``?`` is part of a name.
    """
    text = _URL.sub(_without_secrets_in_query, text)
    text = LOGIN.sub(f"{MARK}@", text)
    for secret in _secrets():
        if secret in text:
            text = text.replace(secret, MARK)
    for pattern in _PATTERNS:
        text = pattern.sub(_without_value, text)
    return text


def printable(text: str) -> str:
    r"""Return ``text`` with ``\x1b`` and the like for characters that control a terminal."""
    return _UNSAFE.sub(_escape, text)


def for_terminal(text: str) -> str:
    """Return ``text`` without credentials and without characters that control a terminal."""
    return printable(redacted(text))


def redacted_values(value: Any) -> Any:
    """Return a value of dicts, lists and plain values without credentials in its strings."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {redacted(key) if isinstance(key, str) else key: redacted_values(one) for key, one in value.items()}
    return [redacted_values(one) for one in value] if isinstance(value, list | tuple) else value


def redacted_json(value: Any, *, indent: int | None = 2) -> str:
    """Return a value of dicts, lists and plain values as JSON, without credentials in its strings."""
    return json.dumps(redacted_values(value), indent=indent)


def remember_secret(*values: str | None) -> None:
    """Remove these values too from now on: credentials that are not in the environment, but in a file or a role."""
    _remembered.update(part for value in values if value for part in _parts(value))


def check_credentials(*prefixes: str) -> None:
    """Check that no credential variable of the environment has a control character, which would end up in a header.

    Args:
        prefixes: of the variables' names, such as ``AWS_``.

    Raises:
        PermissionError: one has; the message names the variable, and not its value.
    """
    for name, value in sorted(os.environ.items()):
        if not name.startswith(prefixes) or not _SECRET_NAME.search(name) or _is_document(value):
            continue
        if found := re.search(r"[\x00-\x1f\x7f]", value):
            what = "a line break" if found[0] in "\r\n" else "a control character"
            message = f"the environment variable {name} contains {what}; set it without, for example with $(cat FILE)"
            raise PermissionError(errno.EACCES, message)


class RedactingFilter(logging.Filter):
    """Removes credentials from log records: from the message, the extra fields and the traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record, and return True."""
        record.msg, record.args = redacted(record.getMessage()), None
        for name, value in vars(record).items():
            if isinstance(value, str) and name not in _RECORD_FIELDS:
                setattr(record, name, redacted(value))
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = redacted("".join(traceback.format_exception(*record.exc_info)).rstrip("\n"))
        return True


_RECORD_FIELDS = frozenset(vars(logging.makeLogRecord({})))


def get_logger(name: str) -> logging.Logger:
    """Return the logger with this name; no record that is logged to it has credentials."""
    logger = logging.getLogger(name)
    if not any(isinstance(one, RedactingFilter) for one in logger.filters):
        logger.addFilter(RedactingFilter())
    return logger


def redact_handlers() -> None:
    """Remove credentials from the records of all libraries too: in a worker of a job, not in a host process."""
    for logger in (logging.getLogger(), logging.getLogger("ray")):
        for handler in logger.handlers:
            if not any(isinstance(one, RedactingFilter) for one in handler.filters):
                handler.addFilter(RedactingFilter())


def _without_value(found: re.Match[str]) -> str:
    return found[0] if found["kept"] is None else found["kept"] + MARK


def _without_secrets_in_query(found: re.Match[str]) -> str:
    return found[0] if found["query"] is None else f"{found['start']}?{_safe_query(found['query'])}"


def _safe_query(query: str) -> str:
    """Return a query in which `MARK` stands for values that may be credentials."""
    parts = []
    for part in query.split("&"):
        name, separator, value = part.partition("=")
        secret = bool(_SECRET_PARAMETER.match(unquote(name))) or len(value or name) > _LONGEST_PLAIN_VALUE
        parts.append(f"{name if separator else ''}{separator}{MARK}" if secret else part)
    return "&".join(parts)


def _secrets() -> list[str]:
    """Return the parts of all credentials that are known, the longest first."""
    found = set(_remembered)
    for name, value in os.environ.items():
        found.update(_secret_parts(name, value))
    return sorted(found, key=len, reverse=True)


@lru_cache(maxsize=1024)
def _secret_parts(name: str, value: str) -> tuple[str, ...]:
    """Return the parts of an environment variable's credential; none if it has no credential."""
    is_path = _PATH_NAME.search(name) and not _is_document(value)
    is_secret = len(value) >= _MIN_SECRET and _SECRET_NAME.search(name) and not is_path
    return tuple(_parts(value)) if is_secret else ()


def _is_document(value: str) -> bool:
    return value.lstrip().startswith(("{", "-----BEGIN"))


def _parts(value: str) -> Iterator[str]:
    """Yield a credential's lines, and how Python's ``repr``, JSON and a URL show it; short ones are left out."""
    lines = re.split(r"[\s\x00]+|\\n", value)
    if _is_document(value):  # JSON with a private key: only its long values are secrets
        lines = [line for line in re.split(r"\\n|[\s\"\\,{}]+", value) if len(line) >= _MIN_DOCUMENT_SECRET]
    for line in [value.strip(), *lines]:
        for form in {line, repr(line)[1:-1], json.dumps(line)[1:-1], quote(line, safe=""), quote(line)}:
            if len(form) >= _MIN_SECRET:
                yield form


def _escape(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
