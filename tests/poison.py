"""A flaw in the JPEG decoder: files with certain bytes kill the process, take its memory, or never end.

`install` puts it into a process. Ray's workers and the processes that they start get it by the variable `VARIABLE`, see
``tests/warm.py`` and ``tests/warm_site``. The files are JPEGs with a comment, which nothing else reads.
"""

import os
import signal

VARIABLE = "INPAINT_ENCODE_POISONED"
CRASH, HANG, MEMORY = b"poison: crash", b"poison: hang", b"poison: memory"


def poisoned(jpeg: bytes, kind: bytes) -> bytes:
    """Return the JPEG with a comment that the flaw reacts to."""
    return jpeg[:2] + b"\xff\xfe" + (len(kind) + 2).to_bytes(2) + kind + jpeg[2:]


def install() -> None:
    import simplejpeg

    decode = simplejpeg.decode_jpeg

    def flawed(data, *arguments, **options):
        start = bytes(data[:64])
        if CRASH in start:
            signal.pthread_kill(__import__("threading").get_ident(), signal.SIGSEGV)
        while HANG in start:
            pass
        kept = []
        while MEMORY in start:
            kept.append(bytearray(os.urandom(2**20)) * 64)
        return decode(data, *arguments, **options)

    simplejpeg.decode_jpeg = flawed


if os.environ.get(VARIABLE):
    install()
