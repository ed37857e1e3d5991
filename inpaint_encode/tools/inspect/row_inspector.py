"""One row looked at: its sources are fetched and read again, its latent is decoded, and what cannot be is said."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from inpaint_encode.core.decode import PairDecoder
from inpaint_encode.errors import EncodeError, PairRejected
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.reader import Output
from inpaint_encode.sources import PairReader, store_of
from inpaint_encode.stores import storage
from inpaint_encode.stores.access import Access

from .pictures import RowPixels
from .statistics import latent_of

if TYPE_CHECKING:
    from inpaint_encode.settings import LatentDecoding

    from .decoder import LatentDecoder

__all__ = ["Look", "Looker"]


class Look(NamedTuple):
    """A row in pixels, and what of it is not to be had."""

    row: dict[str, Any]
    """As `as_rows` gives it."""
    pixels: RowPixels
    missing: list[str]
    """Sentences."""


@dataclass
class Looker:
    """Looks at rows of one output, one after the other.

    Args:
        metadata: how its rows were made.
        reader: with the access that the job had.
        decoder: makes pictures of latents; None if there is none.
        why_not: if there is none, why.
        most_pixels: a row of more is not decoded.
    """

    metadata: RowMetadata
    reader: PairReader
    decoder: LatentDecoder | None = None
    why_not: str = ""
    most_pixels: int = sys.maxsize
    _silent: dict[str, str] = field(default_factory=dict)
    """Stores that did not answer, and their fault."""

    @classmethod
    def of(
        cls, output: Output, options: LatentDecoding, say: Callable[[str], None], most_pixels: int = sys.maxsize
    ) -> Looker:
        """Load the VAE, if that is wanted and it is there."""
        looker = cls(output.metadata, PairReader(Access(**output.job.get("access", {}))), most_pixels=most_pixels)
        spelled = options.vae or output.job.get("vae_source") or output.metadata.vae.vae_source
        if not options.decode:
            looker.why_not = "--no-decode was given"
            return looker
        say(f"loading the VAE {spelled}")
        from .decoder import LatentDecoder  # brings torch, which takes seconds to import

        try:
            looker.decoder = LatentDecoder.load(spelled, output.metadata)
        except EncodeError as error:
            looker.why_not = str(error)
        except RuntimeError as error:  # torch's, of a GPU that a job has filled
            looker.why_not = f"the VAE cannot be brought to the device: {str(error).splitlines()[0]}"
        return looker

    def look(self, row: dict[str, Any]) -> Look:
        """Look at one row, as `as_rows` gives it."""
        missing: list[str] = []
        image, mask = self._source(row, missing)
        latent = latent_of(row, self.metadata)
        noise_mask = row["noise_mask"][0]
        if image is not None and image.shape[:2] != noise_mask.shape:
            missing.append(f"its source is {image.shape[0]} x {image.shape[1]} pixels now, and the row is not")
            image = mask = None
        decoded = self._decoded(latent, noise_mask.shape, missing)
        return Look(row, RowPixels(row["key"], image, mask, noise_mask, latent, decoded), missing)

    def _source(
        self, row: Mapping[str, Any], missing: list[str]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | tuple[None, None]:
        store = store_of(row["image_uri"])
        if store in self._silent:
            missing.append(f"its source is not fetched, since {store} did not answer: {self._silent[store]}")
            return None, None
        try:
            sources = self.reader.refetch(row)
            if sources is None:
                missing.append("its image or mask has gone, or has changed since it was encoded")
                return None, None
            decoder = PairDecoder.of(self.metadata, max_pixels=sys.maxsize)
            image_file, mask_file = sources
            image = decoder.image(image_file.data)
            return image.pixels, decoder.mask(mask_file.data, image)
        except storage.Unavailable as error:
            self._silent[store] = str(error)
            missing.append(f"its source cannot be fetched: {error}")
        except OSError as error:
            missing.append(f"its source cannot be fetched: {error}")
        except PairRejected as rejection:
            missing.append(f"its source cannot be read any more: {rejection.message}")
        return None, None

    def _decoded(self, latent: NDArray[Any], size: tuple[int, ...], missing: list[str]) -> NDArray[np.uint8] | None:
        if self.decoder is None:
            return None
        if size[0] * size[1] > self.most_pixels:
            missing.append(f"not decoded, since it has over {self.most_pixels:,} pixels; `show` decodes it")
            return None
        try:
            decoded = self.decoder.decode(latent)
        except RuntimeError as error:  # torch's, out of memory included
            missing.append(f"cannot be decoded here: {str(error).splitlines()[0]}")
            return None
        if decoded.shape[:2] != size:
            missing.append(f"the VAE's decoder makes {decoded.shape[0]} x {decoded.shape[1]} pixels of it, no picture")
            return None
        return decoded
