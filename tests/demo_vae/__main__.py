"""``python -m tests.demo_vae --output DIR``: train the demonstration's VAE, measure it and write its card."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App, Parameter
from cyclopts.types import NonNegativeInt, PositiveInt
from rich.console import Console

from .card import card
from .measure import measured
from .train import Recipe, train

STEPS = 10_000
"""Steps of the published weights."""

console = Console(highlight=False, soft_wrap=True)
app = App(name="train_vae", help_format="plaintext", default_parameter=Parameter(negative=()))


@app.default
def train_vae(*, output: Path, steps: PositiveInt = STEPS, seed: NonNegativeInt = 0) -> None:
    """Train the demonstration's VAE on photographs of scikit-image, and measure it on two others.

    It runs on one thread. The same steps and seed, with the versions in constraints.txt on the same kind of processor,
    give the same weights bit for bit.

    Args:
        output: folder for config.json, the weights in float16 and their card, README.md.
        steps: number of batches of 32,768 pixels; each takes about 0.07 s.
        seed: of the initial weights and the batches.
    """
    from inpaint_encode.vae.load import load_vae

    recipe = Recipe(steps=steps, seed=seed)
    train(recipe, console.print).half().save_pretrained(output)
    figures = measured(load_vae(output))
    (output / "README.md").write_text(card(recipe, figures, output))
    console.print(f"{figures}\n{output} has the weights, their configuration and their card")


if __name__ == "__main__":
    app()
