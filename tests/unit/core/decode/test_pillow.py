"""Pillow's process-wide limit and warnings belong to the host program; decoding has a limit of its own."""

import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from inpaint_encode.core.decode import decode_image, decode_mask
from tests.files import GREY, png, tiff

from .samples import KINDS, NOISE, caught_by, encoded

HOST_LIMIT = 100
"""Pixels; `NOISE` has more than twice as many, so Pillow alone refuses it."""
FILES = {
    **{kind: encoded(Image.fromarray(NOISE), kind.partition(" ")[0], **options) for kind, options in KINDS.items()},
    "GIF with disposal": encoded(Image.fromarray(NOISE[..., 0]), "GIF", disposal=2),
    "TIFF in tiles": tiff(NOISE, tile=(32, 32)),
    "TIFF in one tile": tiff(NOISE, tile=(64, 64)),
    "TIFF of grey": tiff(NOISE[..., 0].astype(np.uint16)),
    "PNG of one row": png(np.tile(NOISE[:1, :, 0], 20), GREY),
}


@pytest.fixture
def host_limit(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HOST_LIMIT)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("limit", [HOST_LIMIT, 2_000])
def test_an_image_above_the_hosts_limit_is_decoded(host_limit, monkeypatch, kind, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    expected = decode_image(FILES[kind]).levels, decode_mask(FILES[kind], "luma").levels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    assert np.array_equal(decode_image(FILES[kind]).levels, expected[0])
    assert np.array_equal(decode_mask(FILES[kind], "luma").levels, expected[1])
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("max_pixels", [50, 500])
def test_our_limit_has_a_name_of_its_own(host_limit, kind, max_pixels):
    rejection = caught_by(lambda: decode_image(FILES[kind], max_pixels=max_pixels))
    assert (rejection.error, f"--max-pixels {max_pixels}" in rejection.message.replace("allows ", "")) == (
        "image.too_large",
        True,
    )
    assert Image.MAX_IMAGE_PIXELS == HOST_LIMIT


def test_the_host_never_sees_another_limit_while_jpeg_and_png_are_decoded(host_limit):
    done = threading.Event()

    def decode_many():
        for _ in range(100):
            decode_image(FILES["JPEG"])
            decode_mask(FILES["PNG"])
        done.set()

    thread = threading.Thread(target=decode_many)
    thread.start()
    seen = {Image.MAX_IMAGE_PIXELS}
    while not done.is_set():
        seen.add(Image.MAX_IMAGE_PIXELS)
    thread.join()
    assert seen == {HOST_LIMIT}


def test_many_threads_leave_the_hosts_limit(host_limit):
    files = [FILES[kind] for kind in ("GIF", "WEBP", "GIF with disposal", "PNG")] * 25
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(lambda data: decode_image(data).levels, files))) == 100
    assert Image.MAX_IMAGE_PIXELS == HOST_LIMIT


def test_importing_and_decoding_leave_pillow_and_warnings_as_they_are():
    """In a process of its own, with an image that is really above Pillow's limit."""
    code = (
        "import io, warnings, numpy as np; from PIL import Image; "
        "limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters); out = io.BytesIO(); "
        "Image.new('1', (10_000, 9_000)).save(out, 'PNG'); "
        "from inpaint_encode.core.decode import decode_mask; "
        "assert decode_mask(out.getvalue(), max_pixels=90_000_000).levels.shape == (9_000, 10_000); "
        "assert Image.MAX_IMAGE_PIXELS == limit < 90_000_000; "
        "assert [one for one in warnings.filters if one not in filters] == []"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
