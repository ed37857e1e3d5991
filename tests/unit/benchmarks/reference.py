"""What the benchmark's programs must return, computed with the package's own functions."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from inpaint_encode import encode_for_inpaint
from inpaint_encode.core.decode import PairDecoder
from inpaint_encode.core.geometry import Sizing
from jobs.benchmarks.decode import decode_pair


@dataclass(frozen=True)
class LoadVae:
    """Loads an ``AutoencoderKL`` as diffusers' documentation does; picklable."""

    folder: str

    def __call__(self):
        from diffusers import AutoencoderKL

        vae = AutoencoderKL.from_pretrained(self.folder, use_safetensors=True).eval()
        return torch.inference_mode()(lambda pixels: vae.encode(pixels).latent_dist.mode())


def decoded(pair):
    """Return pixels and mask as a worker decodes them."""
    decoder = PairDecoder(sizing=Sizing(multiple=8))
    image = decoder.image(Path(pair.image).read_bytes())
    return image.pixels, decoder.mask(Path(pair.mask).read_bytes(), image)


def expected(pair, vae, grow_mask_by=6):
    """Return the latent and the grown mask by the contract."""
    pixels, levels = (torch.from_numpy(values.astype(np.float32) / 255)[None] for values in decode_pair(pair))
    samples, noise_mask = encode_for_inpaint(pixels, levels, vae, grow_mask_by)
    return samples[0].numpy().astype(np.float16), noise_mask[0].numpy().astype(np.uint8)
