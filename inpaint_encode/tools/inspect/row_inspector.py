"""Inspects single rows: fetches and decodes the sources, decodes the latent, and reports what is missing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from inpaint_encode.core.decode import PairDecoder
from inpaint_encode.core.geometry import format_size
from inpaint_encode.core.isolation import DecodingProcess, IsolatedDecoder, IsolatedReader, ProcessCrashed
from inpaint_encode.errors import EncodeError, PairRejected
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.reader import Output
from inpaint_encode.settings import LatentDecoding, Limits, SourceReading
from inpaint_encode.sources import PairReader, store_of
from inpaint_encode.sources.random_masks import RANDOM_MASK
from inpaint_encode.stores import storage
from inpaint_encode.tools.recorded import option, source_access, suggest_sources, vae_to_load

from .latent_statistics import latent_of
from .pictures import InspectedRow

Decoder = Callable[[NDArray[Any]], NDArray[np.uint8]]
"""Returns levels ``[H, W, 3]`` of a latent ``[C, h, w]``."""


class RowInspector:
    """Inspects rows of one output, one after another, inside its ``with`` block.

    A child process reads and decodes the sources: a file may kill the process that decodes it.

    Args:
        output: the output.
        options: whether to decode latents, and with which VAE.
        reading: which sources to read.
        on_status: called with a line before the VAE is loaded.
        max_pixels: larger rows are not decoded.
    """

    not_decoded = ""
    """Why latents are not decoded; empty if they are."""

    def __init__(
        self,
        output: Output,
        options: LatentDecoding,
        reading: SourceReading,
        on_status: Callable[[str], None],
        max_pixels: int = sys.maxsize,
    ) -> None:
        self._metadata, self._max_pixels, self._job = output.metadata, max_pixels, output.job
        access = source_access(output.uri, output.job, reading)
        is_own, limits = access.prefixes is None, Limits()
        reader = PairReader(access, sys.maxsize if is_own else limits.max_bytes)
        source_decoder = PairDecoder.of(self._metadata, max_pixels=sys.maxsize if is_own else limits.max_pixels)
        self._process = DecodingProcess(reader, source_decoder)
        self._reader = IsolatedReader(reader, self._process)
        self._source_decoder = IsolatedDecoder.in_process(self._process)
        self._decoder: Decoder | None = None
        self._unavailable: dict[str, str] = {}  # errors of stores that did not respond, which get no more requests
        if not options.decode:
            self.not_decoded = "--no-decode was given"
            return
        recorded = output.job.get("vae_source") or output.metadata.vae.vae_source
        if not (source := vae_to_load(output.uri, output.job, recorded, options.vae)):
            self.not_decoded = (
                f"you did not encode this output here; if you trust its VAE, add {option('--vae', recorded)}"
            )
            return
        on_status(f"loading the VAE {source}")
        try:
            self._decoder = load_decoder(source, output.metadata)
        except EncodeError as error:
            self.not_decoded = str(error)
        except RuntimeError as error:  # from torch: a job may have filled the GPU
            self.not_decoded = f"the VAE cannot be moved to the device ({str(error).splitlines()[0]})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stop()

    def inspect(self, row: Mapping[str, Any]) -> InspectedRow:
        """Inspect one row, given as `as_rows` returns it."""
        missing: list[str] = []
        image, mask = self._read_source(row, missing)
        latent = latent_of(row, self._metadata)
        noise_mask = row["noise_mask"][0]
        if image is not None and image.shape[:2] != noise_mask.shape:
            now, before = format_size(*image.shape[:2]), format_size(*noise_mask.shape)
            missing.append(f"its source now gives {now} pixels, but the row has {before}")
            image = mask = None
        decoded = self._decode(latent, noise_mask.shape, missing)
        return InspectedRow(row, image, mask, noise_mask, latent, decoded, missing)

    def _read_source(
        self, row: Mapping[str, Any], missing: list[str]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | tuple[None, None]:
        store = store_of(row["image_uri"])
        if store in self._unavailable:
            missing.append(f"its source is not fetched: {store} did not respond ({self._unavailable[store]})")
            return None, None
        try:
            sources = self._reader.refetch(row)
            if sources is None:
                missing.append("its image or mask was deleted or has changed since it was encoded")
                return None, None
            image_file, mask_file = sources
            image = self._source_decoder.image(image_file.data)
            return image.pixels, self._source_decoder.mask(mask_file.data, image)
        except storage.NotAllowed:
            uris = [row[name] for name in ("image_uri", "mask_uri") if not row[name].startswith(RANDOM_MASK)]
            options = " ".join(dict.fromkeys(suggest_sources(uri, self._job) for uri in uris))
            missing.append(f"its source is not fetched; if you trust this output, add {options}")
        except OSError as error:
            if isinstance(error, storage.Unavailable):
                self._unavailable[store] = str(error)
            missing.append(f"its source cannot be fetched: {error}")
        except PairRejected as rejection:
            missing.append(f"its source can no longer be read: {rejection.message}")
        except ProcessCrashed as crash:
            missing.append(f"its source cannot be read: {crash}")
        return None, None

    def _decode(self, latent: NDArray[Any], size: tuple[int, ...], missing: list[str]) -> NDArray[np.uint8] | None:
        if self._decoder is None:
            return None
        if size[0] * size[1] > self._max_pixels:
            missing.append(f"not decoded: it has more than {self._max_pixels:,} pixels; use `show` to decode it")
            return None
        try:
            decoded = self._decoder(latent)
        except RuntimeError as error:  # from torch, for example out of memory
            missing.append(f"its latent cannot be decoded here: {str(error).splitlines()[0]}")
            return None
        if decoded.shape[:2] != size:
            found, expected = format_size(*decoded.shape[:2]), format_size(*size)
            missing.append(f"the VAE decodes its latent to {found} pixels, not to {expected}")
            return None
        return decoded


def load_decoder(source: str, metadata: RowMetadata) -> Decoder:
    """Load the VAE that made the rows, in float32, on the GPU if there is one; return its decoder.

    Args:
        source: path, URI or hub id, spelled as in `VaeMetadata.vae_source`.
        metadata: of the rows.

    Raises:
        UsageError: there is no VAE.
        JobFailed: it is not the VAE that made the rows.
        RuntimeError: from torch, for example out of memory; the decoder raises it too.
    """
    import torch  # takes seconds to import, and --no-decode does not need it

    from inpaint_encode.vae.latents import decode_latents
    from inpaint_encode.vae.load import load_verified_vae, parse_vae_source

    vae, found = load_verified_vae(parse_vae_source(source, metadata), metadata.vae)
    vae = vae.to("cuda" if torch.cuda.is_available() else "cpu")

    def decode(latent: NDArray[Any]) -> NDArray[np.uint8]:
        samples = torch.from_numpy(latent.astype(np.float32))[None]
        pixels = decode_latents(vae, samples, found, metadata.vae.latent_form)[0]
        levels: NDArray[np.uint8] = (pixels * 255).round().to(torch.uint8).numpy()
        return levels

    return decode
