"""The model card of a trained VAE: its limits, its measurements and its training photographs."""

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
Decoded pictures are recognizable and have the right colors, and masked pixels stay gray. 512 x 512 pixels take about
0.2 s to encode and 0.3 s to decode on one core. It is for the demonstration, pictures in reports, and tests.

Do not use it for real work. It was trained on ten photographs, its pictures are soft, and no denoiser was trained on
its latents.

| | |
|---|---|
| coffee.png, never trained on | {coffee_psnr:.2f} dB |
| chelsea.png, never trained on | {chelsea_psnr:.2f} dB |
| a sample of the posterior instead of its mean | at most {sample_loss:.2f} dB less |
| a color channel's mean over a whole photograph | at most {colour_off:.1f} levels of 255 off |
| either photograph with gray strokes, 9 to 18 pixels wide | at most {strokes_loss:.2f} dB less |
| a color channel's mean inside these strokes, 2 pixels from their edges | at most {strokes_off:.1f} levels off |
| any pixel inside a gray rectangle, 8 pixels from its edges | at most {rectangle_off:.1f} levels off |
| any pixel of a gray image | at most {grey_off:.1f} levels off, {corner_off:.1f} in the first 8 x 8 |
| flat images from black to white | at most {tint:.1f} levels between the means of two color channels |

Decibels are the peak signal-to-noise ratio of the whole photograph: cropped to multiples of 8, encoded to the
posterior's mean in float32, decoded, and rounded to 8 bits. The two photographs were not trained on, but settings were
chosen by them. `scaling_factor` is one over the standard deviation of the training photographs' latents.

Trained by `python -m tests.demo_vae --output DIR --steps {steps} --seed {seed}` with torch {torch}, on
one thread. The same command, with the versions in `constraints.txt` on the same kind of processor, gives the same
weights bit for bit.

## Photographs

All are in the wheel of scikit-image; the licenses are quoted from its documentation of `skimage.data`. The training
data also has random ellipses in colors of the first photograph.

| file | use | license, as documented |
|---|---|---|
{photographs}

The license of the weights is that of this project, Apache-2.0.
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
