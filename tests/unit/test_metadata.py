"""RowMetadata: it comes back from JSON as it was, reads version 0.1, and has every setting of a row."""

import json

import pytest

from inpaint_encode.metadata import RowMetadata
from inpaint_encode.output.resume import row_metadata as metadata_of_settings
from inpaint_encode.settings import Decoding, RowSettings
from tests.metadata import VAE, row_metadata


def test_json_gives_it_back():
    metadata = row_metadata(latents_mean=(0.5, 1.0), latents_std=(1.0, 2.0), versions={"torch": "2"}, tile=True)
    assert RowMetadata.from_dict(json.loads(json.dumps(metadata.to_dict()))) == metadata
    assert list(metadata.to_dict()) == sorted(metadata.to_dict())


def test_names_and_omissions_of_version_0_1():
    old = {"vae_class": "AutoencoderKL", "weights_sha256": "0" * 64, "ratio": 8, "latent_channels": 4}
    metadata = RowMetadata.from_dict(old | {"dtype": "bfloat16", "scaling_factor": 0.18215, "unknown": 1})
    assert (metadata.vae.vae_scale_factor, metadata.vae.crop_multiple, metadata.compute_dtype) == (8, 8, "bfloat16")
    assert (metadata.tile, metadata.scaled, metadata.posterior) == (False, False, "mean")


@pytest.mark.parametrize("name", ["vae_class", "weights_sha256", "vae_scale_factor", "latent_channels"])
def test_a_missing_field_is_named(name):
    values = {key: value for key, value in row_metadata().to_dict().items() if key != name}
    with pytest.raises(ValueError, match=name):
        RowMetadata.from_dict(values)


def test_every_setting_of_a_row_is_recorded():
    settings = RowSettings(grow_mask_by=9, also_original=True, dtype="float32"), Decoding(icc="ignore", resize=64)
    metadata = metadata_of_settings(*settings, VAE)
    for values in (part.recorded() for part in settings):
        assert values == {name: getattr(metadata, name) for name in values}


def test_scaled_latents_have_the_scaled_form():
    assert metadata_of_settings(RowSettings(scaled=True), Decoding(), VAE).vae.latent_form == "scaled"
