"""How the rows of an output were made: the JSON in every data file's footer, and ``rows`` in ``_job.json``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal, Self

from inpaint_encode.json_files import convert_json

CONTRACT_VERSION = 1
"""Version of the transform in `inpaint_encode.core.transform` and `inpaint_encode.vae`."""

LatentForm = Literal["unscaled", "scaled", "packed"]
"""``unscaled``: as the encoder returns it. ``scaled``: in the denoiser's scaled space. ``packed``: scaled, with each
2x2 patch moved into the channels (Flux.2)."""

_Side = Annotated[int, range(1, 2**20)]
"""Pixels."""

_FORMER_NAMES = {"ratio": "vae_scale_factor", "dtype": "compute_dtype"}
"""Names in footers and job files of version 0.1, by their current name."""


@dataclass(frozen=True, kw_only=True)
class VaeMetadata:
    """The VAE of a row, and what a reader needs to use its latents."""

    vae_class: str
    """Class name in diffusers."""
    vae_source: str = ""
    """Folder, URI or hub id the VAE was loaded from."""
    weights_sha256: str
    config_sha256: str = ""
    """Hash of the configuration, see `inpaint_encode.vae.registry.config_sha256`."""
    vae_scale_factor: Annotated[int, range(1, 2**10)]
    """Pixels of a side per latent value."""
    crop_multiple: Annotated[int, range(1, 2**14)]
    """Multiple that image sides are cropped to; larger than ``vae_scale_factor`` for plain Flux.2 latents."""
    latent_channels: Annotated[int, range(1, 2**14)]
    latent_form: LatentForm = "unscaled"
    """Form of the stored latents; "scaled" with ``--scaled``."""
    scaling_factor: float | None = None
    """None if the model has none, or if a single file does not tell."""
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    """Per channel; of Flux.2 per packed channel."""
    latents_std: tuple[float, ...] | None = None
    vae_family: str = ""
    """``--vae-family``, if it determined the scaling."""


@dataclass(frozen=True, kw_only=True)
class RowMetadata:
    """Everything that determines a row's values. All rows of an output share it.

    The options are those of `inpaint_encode.settings.RowSettings` and `inpaint_encode.settings.Decoding`; defaults are
    what version 0.1 did before it wrote the field.
    """

    vae: VaeMetadata
    contract: int = CONTRACT_VERSION
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of Python and the packages; they may differ between the rows of an output."""

    grow_mask_by: Annotated[int, range(65)] = 6
    compute_dtype: str = "auto"
    samples_dtype: Literal["float16", "float32"] = "float16"
    posterior: Literal["mean", "sample", "moments"] = "mean"
    posterior_seed: int = 0
    scaled: bool = False
    also_original: bool = False
    latent_mask: Literal["none", "comfyui", "diffusers"] = "none"
    tile: bool | None = False
    tile_size: _Side = 512
    mask_encoding: Literal["tensor", "packed"] = "tensor"
    deterministic: bool = False

    mask_channel: str = "auto"
    mask_polarity: str = "white"
    icc: str = "srgb"
    resize: Annotated[int, range(2**20)] = 0
    resolution: Annotated[str, re.compile(r"([1-9]\d{0,5}x[1-9]\d{0,5})?")] = ""
    buckets: Annotated[int, range(2**40)] = 0
    bucket_step: _Side = 64
    upscale: bool = False

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` returned; names of version 0.1 are accepted, and other keys are ignored.

        Raises:
            ValueError: a field without a default is missing, or a field has a wrong type.
        """
        given = {_FORMER_NAMES.get(name, name): value for name, value in values.items()}
        if "vae_scale_factor" in given:
            given.setdefault("crop_multiple", given["vae_scale_factor"])
        for name in ("latents_mean", "latents_std"):
            if isinstance(given.get(name), tuple):
                given[name] = list(given[name])
        vae, rows = (
            {one.name: given[one.name] for one in fields(kind) if one.name in given and one.name != "vae"}
            for kind in (VaeMetadata, cls)
        )
        return convert_json(cls, {**rows, "vae": vae}, "metadata")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, sorted by name; the fields of ``vae`` stand beside the others."""
        values = asdict(self)
        values |= values.pop("vae")
        for name in ("latents_mean", "latents_std"):
            values[name] = None if values[name] is None else list(values[name])
        return dict(sorted(values.items()))

    @property
    def tiling(self) -> bool | None:
        """Whether to encode in tiles: always, never, or (None) on out-of-memory. ``deterministic`` excludes None."""
        return False if self.tile is None and self.deterministic else self.tile
