"""Read and decode files in a child process, one at a time, with limits of memory and time.

A file may kill the process that decodes it, or need all of its memory or time. In a child process it costs only itself:
the child is started again, and the file's pair is rejected as ``image.crashed`` or ``mask.crashed``.

* `IsolatedReader` and `IsolatedDecoder` replace `PairReader` and `PairDecoder` in
  `inpaint_encode.core.chunk.fetch_and_decode`. Both use one `DecodingProcess`.
* The parent sends pickled requests. The child answers with JSON and raw bytes, because nothing that a decoder of a
  stranger's file has made may be unpickled.
* ``python -m inpaint_encode.core.isolation`` is the child.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from inpaint_encode.errors import JobFailed, PairRejected
from inpaint_encode.sources import Changed, NullValue, PairReader, SourceFile
from inpaint_encode.sources.random_masks import RANDOM_MASK, RandomMask
from inpaint_encode.stores import storage
from inpaint_encode.stores.base import Access

from .decode import DecodedImage, PairDecoder
from .machine import machine_memory

CPU_S = 120.0
"""CPU seconds to decode one file, or of this process while it waits for the files of an image. Decoding 100 megapixels
takes up to 4 s."""

DECODE_S = 900.0
"""Seconds to decode one file, with all waits: for memory, and for other processes on the same cores."""

READ_S = 1800.0
"""Seconds to read the files of an image; stores end each of their own requests much sooner."""

_READING_BYTES = 4 * 2**30
"""Memory of a child for its modules, and for reading a row group of Parquet."""

_BYTES_PER_PIXEL = 40
"""Memory of a child for decoding; formats need up to 17."""

_TRIES = 2
"""Processes that a file must kill before it is rejected: something else may have killed one."""

_FRAME = struct.Struct(">IQ")
"""Lengths of a frame's header and of its payload."""
_MAX_HEADER = 2**20
_NO_ANSWER = (OSError, EOFError, ValueError, TypeError, RecursionError)
"""Raised where a child ends instead of answering, or answers with something else."""
_STORE_ERRORS: dict[str, type[OSError]] = {
    "FileNotFoundError": FileNotFoundError,
    "PermissionError": PermissionError,
    "NotAllowed": storage.NotAllowed,
    "NullValue": NullValue,
    "Changed": Changed,
    "TooLarge": storage.TooLarge,
    "Unavailable": storage.Unavailable,
}


class ProcessCrashed(Exception):
    """The child process died over a file, or the file exceeded a limit; the message says which."""


@contextmanager
def time_limit(work: Literal["decode", "read"]) -> Iterator[None]:
    """Kill this process, by SIGPROF or SIGALRM, if the block takes too long; for worker processes only.

    A decoder that hangs may never let Python's threads run, so the kernel ends the process.
    """
    signal.setitimer(signal.ITIMER_REAL, DECODE_S if work == "decode" else READ_S)
    signal.setitimer(signal.ITIMER_PROF, CPU_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)


@dataclass(frozen=True)
class _Setup:
    """What a child needs to know once."""

    access: Access
    max_bytes: int
    signed: Mapping[str, str]
    decoder: PairDecoder
    memory: int
    """Limit in bytes."""
    cpu_seconds: float


class DecodingProcess:
    """A child process that reads and decodes files; it is started when it is needed, and again after a crash.

    Args:
        reader: its access and limit are the child's.
        decoder: decodes in the child.
        memory: limit in bytes; by default enough for every file within the limits of ``reader`` and ``decoder``, and at
            most half of the machine's memory.
        cpu_seconds: limit for decoding a file.
    """

    def __init__(
        self, reader: PairReader, decoder: PairDecoder, *, memory: int | None = None, cpu_seconds: float = CPU_S
    ) -> None:
        enough = _READING_BYTES + 2 * reader.max_bytes + _BYTES_PER_PIXEL * decoder.max_pixels
        memory = memory or min(enough, machine_memory() // 2)
        self.setup = _Setup(reader.access, reader.max_bytes, reader.signed, decoder, memory, cpu_seconds)
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def call(self, function: Literal["read", "image", "mask"], *arguments: Any) -> tuple[dict[str, Any], bytes]:
        """Call a function of the child; return the answer's values and its bytes.

        Raises:
            ProcessCrashed: the child died `_TRIES` times, or a limit was exceeded.
            PairRejected, OSError: the function raised it.
            JobFailed: the child cannot be started.
        """
        with self._lock:
            for attempt in range(_TRIES):
                child = self._child or self._start()
                try:
                    header, payload = self._answer(child, pickle.dumps((function, arguments)))
                    break
                except _NO_ANSWER:
                    code = self.stop()
                    if attempt == _TRIES - 1 or -code in (signal.SIGALRM, signal.SIGPROF):
                        raise ProcessCrashed(self._describe(code)) from None
            if header.get("out_of_memory"):
                self.stop()
                raise ProcessCrashed(f"it needed more than {self.setup.memory / 2**30:.1f} GiB of memory")
        if rejected := header.get("rejected"):
            raise PairRejected(*map(str, rejected))
        if error := header.get("os_error"):
            name, number, message = error
            raise _STORE_ERRORS.get(name, OSError)(int(number), str(message))
        return header, payload

    def _start(self) -> subprocess.Popen[bytes]:
        """Start a child with this process's module path and wait until it is ready."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        environment |= {"ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-P", "-m", __name__]
        try:
            child = self._child = subprocess.Popen(  # noqa: S603
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
            )
            self._answer(child, pickle.dumps(self.setup))
        except _NO_ANSWER as error:
            self.stop()
            raise JobFailed(f"the process that decodes files one by one cannot be started ({error!r})") from error
        return child

    def _answer(self, child: subprocess.Popen[bytes], request: bytes) -> tuple[dict[str, Any], bytes]:
        """Send a request and return the answer; raises EOFError or OSError if the child ends before."""
        assert child.stdin is not None and child.stdout is not None
        _write_frame(child.stdin, request)
        header, payload = _read_frame(child.stdout, max(self.setup.max_bytes, 4 * self.setup.decoder.max_pixels))
        return dict(json.loads(header)), payload

    def stop(self) -> int:
        """Kill the child, if there is one; return its exit code, negative for the signal that ended it."""
        child, self._child = self._child, None
        if child is None:
            return 0
        with suppress(subprocess.TimeoutExpired):  # one that is dying keeps its own code
            child.wait(0.2)
        child.kill()
        code = child.wait()
        for pipe in (child.stdin, child.stdout):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        return code

    def _describe(self, code: int) -> str:
        if -code == signal.SIGPROF:
            return f"reading or decoding took more than {self.setup.cpu_seconds:.0f} s of a core"
        if -code == signal.SIGALRM:
            return "reading or decoding did not end"
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"the process that read and decoded it was ended by {name}"


class IsolatedReader(PairReader):
    """A `PairReader` whose files are read in a child process.

    Args:
        reader: draws random masks, and requests what is not read.
        process: reads.
    """

    def __init__(self, reader: PairReader, process: DecodingProcess) -> None:
        super().__init__(reader.access, reader.max_bytes, reader.signed)
        self._process = process

    def read(self, uri: str, version: str = "", *, key: str | None = None) -> SourceFile:  # type: ignore[override]
        """See `PairReader.read`; raises `ProcessCrashed` if reading kills the child."""
        if key is not None and uri.startswith(RANDOM_MASK):
            return super().read(uri, version, key=key)
        found, data = self._process.call("read", uri, version, key)
        return storage.Blob(data, str(found["version"]))


class IsolatedDecoder(PairDecoder):
    """A `PairDecoder` whose files are decoded in a child process."""

    _process: DecodingProcess

    @classmethod
    def in_process(cls, process: DecodingProcess) -> Self:
        """Return a decoder with the options of the process's own."""
        decoder = cls(**vars(process.setup.decoder))
        object.__setattr__(decoder, "_process", process)
        return decoder

    def image(self, data: bytes) -> DecodedImage:
        """See `PairDecoder.image`; raises `ProcessCrashed` if the file kills the child."""
        found, pixels = self._process.call("image", data)
        height, width = int(found["height"]), int(found["width"])
        geometry = self.fit(height, width)
        levels = np.frombuffer(pixels, np.uint8).reshape(geometry.crop.height, geometry.crop.width, 3)
        return DecodedImage(levels, height, width, geometry, bool(found["transposed"]))

    def mask(self, data: bytes | RandomMask, image: DecodedImage) -> NDArray[np.uint8]:
        """See `PairDecoder.mask`; raises `ProcessCrashed` if the file kills the child."""
        _, mask = self._process.call("mask", data, image._replace(pixels=np.empty(0, np.uint8)))
        return np.frombuffer(mask, np.uint8).reshape(image.geometry.crop.height, image.geometry.crop.width)


def _write_frame(pipe: IO[bytes], header: bytes, payload: bytes | memoryview = b"") -> None:
    pipe.write(_FRAME.pack(len(header), len(payload)))
    pipe.write(header)
    pipe.write(payload)
    pipe.flush()


def _read_frame(pipe: IO[bytes], limit: int, max_header: int = _MAX_HEADER) -> tuple[bytes, bytes]:
    """Return a frame's header and payload; raises EOFError at the end, and ValueError if either is too long."""
    header, payload = _FRAME.unpack(_read_exactly(pipe, _FRAME.size))
    if header > max_header or payload > limit:
        raise ValueError("the frame is too long")
    return _read_exactly(pipe, header), _read_exactly(pipe, payload)


def _read_exactly(pipe: IO[bytes], length: int) -> bytes:
    data = pipe.read(length)
    if len(data) < length:
        raise EOFError("the process has ended")
    return data


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """In the child: answer requests until their pipe is closed."""
    global CPU_S
    setup: _Setup = pickle.loads(_read_frame(requests, 0, sys.maxsize)[0])  # noqa: S301, TID251 - of the parent
    CPU_S = setup.cpu_seconds
    resource.setrlimit(resource.RLIMIT_DATA, (setup.memory, setup.memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # if the machine runs out of memory, this process is the one to end
        Path("/proc/self/oom_score_adj").write_text("1000")
    reader, decoder = PairReader(setup.access, setup.max_bytes, setup.signed), setup.decoder
    _write_frame(answers, b"{}")
    while True:
        try:
            request, _ = _read_frame(requests, 0, sys.maxsize)
        except EOFError:
            return
        function, arguments = pickle.loads(request)  # noqa: S301, TID251 - of the parent
        del request
        header, payload = _call(reader, decoder, function, arguments)
        _write_frame(answers, json.dumps(header).encode(), payload)


def _call(reader: PairReader, decoder: PairDecoder, function: str, arguments: Any) -> tuple[dict[str, Any], memoryview]:
    """Return the values and the bytes that answer a request."""
    nothing = memoryview(b"")
    try:
        with time_limit("read" if function == "read" else "decode"):
            if function == "read":
                uri, version, key = arguments
                file = reader.read(uri, version, key=key)
                assert isinstance(file, storage.Blob)
                return {"version": file.version}, memoryview(file.data)
            if function == "mask":
                return {}, np.ascontiguousarray(decoder.mask(*arguments)).reshape(-1).data
            image = decoder.image(*arguments)
            size = {"height": image.source_height, "width": image.source_width, "transposed": image.transposed}
            return size, np.ascontiguousarray(image.pixels).reshape(-1).data
    except PairRejected as rejection:
        return {"rejected": [rejection.error, rejection.message]}, nothing
    except MemoryError:
        return {"out_of_memory": True}, nothing
    except OSError as error:
        if function == "read":
            return {"os_error": [type(error).__name__, error.errno or 0, error.strerror or str(error)]}, nothing
        return {"rejected": [f"{function}.corrupt", repr(error)]}, nothing
    except Exception as error:  # no file, whatever its bytes, may stop the others
        if function == "read":
            return {"os_error": ["OSError", errno.EIO, repr(error)]}, nothing
        return {"rejected": [f"{function}.corrupt", repr(error)]}, nothing


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not write into the answers
    _serve(sys.stdin.buffer, answers)
