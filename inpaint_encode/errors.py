"""Every way a job or a pair can fail, by name."""

from __future__ import annotations

from .stores.redaction import redacted


class EncodeError(Exception):
    """Base of the errors that end a command; its message is one sentence for the person who ran it.

    The message has no credentials: notebooks, schedulers and Ray show and store it, too.
    """

    exit_code = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(redacted(one) if isinstance(one, str) else one for one in args))


class JobFailed(EncodeError):
    """The job could not go on: exit code 1. Finished chunks are kept; the same command resumes."""


class UsageError(EncodeError):
    """The command asks for something that cannot be done: exit code 2. Nothing was changed."""

    exit_code = 2


class TooManyRejected(EncodeError):
    """More pairs were rejected than ``--max-rejected`` allows: exit code 3."""

    exit_code = 3


class IncompleteOutput(EncodeError):
    """``verify`` found damage, or chunks that are not done yet: exit code 4."""

    exit_code = 4


class PairRejected(Exception):
    """One pair cannot become a row; the others go on.

    ``error`` is a stable name, ``stage.what`` (``image.truncated``); ``message`` says it with numbers.
    """

    def __init__(self, error: str, message: str) -> None:
        super().__init__(error, message)
        self.error = error
        self.message = message

    @property
    def stage(self) -> str:
        """Part of the name before the dot: ``fetch``, ``image``, ``mask``, ``orientation`` or ``size``."""
        return self.error.partition(".")[0]
