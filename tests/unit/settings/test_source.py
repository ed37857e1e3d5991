"""Options of sources, masks and decoding that contradict each other; mask presets."""

import pytest
from pydantic import ValidationError

from inpaint_encode.settings import Decoding, EncodeJob, PlanOptions, Source

WRONG_SOURCES = [
    ({}, "add --images and --masks, or --pairs"),
    ({"images": "i", "masks": "m", "random_masks": 2}, "leave out one or the other"),
    ({"pairs": "p.csv", "mask_column": "m", "random_masks": 2}, "leave out one or the other"),
    ({"images": "i", "masks": "m", "mask_seed": 2}, "add --random-masks 1"),
    ({"masks": "m"}, "add --images"),
    ({"mask_pattern": "{stem}_m.png"}, "add --images"),
    ({"pairs": "p.csv", "images": "i"}, "leave out --images"),
    ({"images": "i", "masks": "m", "key_column": "id"}, "add --pairs"),
    *[
        ({"images": "i", "mask_pattern": pattern}, "once, such as")
        for pattern in ("mask{n}.png", "{stem}_mask", "x/{stem}.png", "{stem}{stem}.png", "{stem}_{m}.png")
    ],
    ({"images": "i", "mask_pattern": "{stem}{n}.png"}, "between {stem} and {n}"),
    ({"images": "i", "mask_pattern": "{n}0{stem}.png"}, "between {stem} and {n}"),
]


@pytest.mark.parametrize(("given", "sentence"), WRONG_SOURCES)
def test_a_source_says_which_option_to_add(given, sentence):
    with pytest.raises(ValidationError, match=sentence):
        Source(**given)


WRONG_MASKS = [
    (Source(images="i"), Decoding(), "add --masks; or --mask-pattern if .* or --random-masks 1"),
    (Source(pairs="p.csv", mask_column="image"), Decoding(), "--mask-channel alpha if"),
    (Source(images="i"), Decoding(mask_channel="red"), "no masks are given"),
    (Source(images="i", random_masks=1), Decoding(mask_preset="comfy"), "leave out these options or --random-masks"),
    (Source(images="i", random_masks=1), Decoding(mask_polarity="black"), "leave out these options or --random-masks"),
]


@pytest.mark.parametrize(("source", "decoding", "sentence"), WRONG_MASKS)
def test_a_job_says_which_option_its_masks_lack(source, decoding, sentence):
    with pytest.raises(ValidationError, match=sentence):
        PlanOptions(source=source, decoding=decoding)
    PlanOptions(source=source, decoding=Decoding(mask_channel="auto" if source.random_masks else "alpha"))


@pytest.mark.parametrize(
    ("given", "channel", "polarity"),
    [
        ({}, "auto", "white"),
        ({"mask_channel": "alpha"}, "alpha", "transparent"),
        ({"mask_channel": "alpha", "mask_polarity": "opaque"}, "alpha", "opaque"),
        ({"mask_polarity": "black"}, "auto", "black"),
        ({"mask_preset": "comfy"}, "alpha", "transparent"),
        ({"mask_preset": "comfy", "mask_polarity": "opaque"}, "alpha", "opaque"),
        ({"mask_preset": "comfy", "mask_channel": "red"}, "red", "white"),
        ({"mask_preset": "lama"}, "luma", "white"),
        ({"mask_preset": "mat"}, "luma", "black"),
        ({"mask_preset": "mat", "mask_channel": "red"}, "red", "black"),
        ({"mask_preset": "mat", "mask_polarity": "white"}, "luma", "white"),
        ({"mask_preset": "mat", "mask_channel": "alpha"}, "alpha", "transparent"),
        ({"mask_preset": "brushnet"}, "luma", "black"),
        ({"mask_preset": "iopaint"}, "luma", "white"),
        ({"mask_preset": "onetrainer"}, "luma", "white"),
    ],
)
def test_preset_sets_channel_and_polarity_that_are_not_given(given, channel, polarity):
    decoding = Decoding(**given)
    assert (decoding.mask_channel, decoding.mask_polarity) == (channel, polarity)
    explicit = Decoding(mask_channel=channel, mask_polarity=polarity)
    assert decoding.recorded() == explicit.recorded()


@pytest.mark.parametrize("given", ["", "{stem}.mask.png"])
def test_preset_sets_the_mask_pattern_unless_given(given):
    parts = {"vae": {"vae": "v"}, "output": {"output": "o"}, "source": {"images": "i", "mask_pattern": given}}
    for preset, pattern in (("lama", "{stem}_mask{n}.png"), ("onetrainer", "{stem}-masklabel.png")):
        job = EncodeJob(**parts, decoding={"mask_preset": preset})
        assert job.source.mask_pattern == (given or pattern)
    listed = {**parts, "source": {"pairs": "list.csv"}}
    assert EncodeJob(**listed, decoding={"mask_preset": "lama"}).source.mask_pattern == ""


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"mask_polarity": "opaque"}, "--mask-polarity opaque does not fit --mask-channel auto; use white or black"),
        ({"mask_channel": "alpha", "mask_polarity": "white"}, "--mask-channel alpha; use transparent or opaque"),
        ({"resize": 512, "buckets": 1}, "--resize and --buckets cannot be combined; give one of them"),
        ({"upscale": True}, "add --resize, --resolution or --buckets"),
        ({"bucket_step": 32}, "--bucket-step needs --buckets"),
        ({"resolution": "1024"}, "did you mean 1024x1024?"),
        ({"resolution": "1024 X 768"}, "did you mean 1024x768?"),
        ({"resolution": "0x768"}, "did you mean 768x768?"),
    ],
)
def test_contradicting_options_raise(given, sentence):
    with pytest.raises(ValidationError) as caught:
        Decoding(**given)
    assert sentence in str(caught.value)
