"""The card of a trained VAE: what it is, what it is not, its figures and the photographs it learned from."""

from __future__ import annotations

from pathlib import Path

import torch

from .measure import Figures
from .sources import HELD_OUT, TRAINED_ON, Photograph
from .train import Recipe

__all__ = ["card"]

_CARD = """\
# A small VAE for the demonstration and for tests

A diffusers `AutoencoderKL`, ratio 8, {channels} latent channels, {parameters:,} parameters, {size:,} bytes in float16.
What it decodes is recognisable, in the right colours, and what was greyed stays grey; 512 x 512 pixels take about 0.2 s
to encode and 0.3 s to decode on one core. That is all it is for: the demonstration, pictures in reports, and tests.

It is no VAE for work. It learned from ten photographs, its pictures are soft, and its latents are of no published
model: no denoiser knows them.

| | |
|---|---|
| coffee.png, never trained on | {coffee_psnr:.2f} dB |
| chelsea.png, never trained on | {chelsea_psnr:.2f} dB |
| a sample of the posterior in the place of its mean | at most {sample_loss:.2f} dB less |
| a colour's mean over all of a photograph | at most {colour_off:.1f} levels of 255 off |
| either with strokes of grey, 9 to 18 pixels wide | at most {strokes_loss:.2f} dB less |
| a colour's mean inside these strokes, 2 pixels from their edges | at most {strokes_off:.1f} levels off |
| any pixel inside a grey rectangle, 8 pixels from its edges | at most {rectangle_off:.1f} levels off |
| any pixel of an image that is all grey | at most {grey_off:.1f} levels off, {corner_off:.1f} in the first 8 x 8 |
| flat images from black to white | at most {tint:.1f} levels between the means of two colours |

Decibels are of 255 over the root mean square error of the whole photograph, cropped to multiples of 8, encoded to the
posterior's mean in float32 and decoded, rounded to 8 bits. Nothing was trained on the two photographs, but settings
were chosen by them. `scaling_factor` is one over the standard deviation of latents of the photographs that it was
trained on, the mean's.

Trained by `python -m tests.demo_vae --output DIR --steps {steps} --seed {seed}` with torch {torch}, on
one thread. The same command, with the versions in `constraints.txt` on the same kind of processor, gives the same
weights bit for bit.

## Photographs

All are in the wheel of scikit-image; the words are those of its documentation of `skimage.data`. Beside them it saw
ellipses, drawn at random in colours of the first.

| file | | what its documentation says |
|---|---|---|
{photographs}

The weights are under the licence of this project, Apache-2.0.
"""


def card(recipe: Recipe, figures: Figures, folder: Path) -> str:
    """Return the text of README.md for the weights in ``folder``."""
    (weights,) = folder.glob("*.safetensors")
    rows = [_row(photo, "trained on") for photo in TRAINED_ON] + [_row(photo, "held out") for photo in HELD_OUT]
    return _CARD.format(
        **figures._asdict(),
        channels=recipe.latent_channels,
        size=weights.stat().st_size,
        steps=recipe.steps,
        seed=recipe.seed,
        torch=torch.__version__,
        photographs="\n".join(rows),
    )


def _row(photo: Photograph, use: str) -> str:
    return f"| {photo.file} | {use} | {photo.licence} |"
