"""Options of sources and masks that contradict each other."""

import pytest
from pydantic import ValidationError

from inpaint_encode.settings import Decoding, PlanOptions, Source

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
    (Source(images="i"), Decoding(), "add --masks, --mask-pattern where .* or --random-masks 1"),
    (Source(pairs="p.csv", mask_column="image"), Decoding(), "--mask-channel alpha where"),
    (Source(images="i"), Decoding(mask_channel="red"), "no masks are given"),
    (Source(images="i", random_masks=1), Decoding(mask_preset="comfy"), "leave out one or the other"),
    (Source(images="i", random_masks=1), Decoding(mask_polarity="black"), "leave out one or the other"),
]


@pytest.mark.parametrize(("source", "decoding", "sentence"), WRONG_MASKS)
def test_a_job_says_which_option_its_masks_lack(source, decoding, sentence):
    with pytest.raises(ValidationError, match=sentence):
        PlanOptions(source=source, decoding=decoding)
    PlanOptions(source=source, decoding=Decoding(mask_channel="auto" if source.random_masks else "alpha"))
