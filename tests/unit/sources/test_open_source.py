"""What is the same for all kinds of sources."""

import pytest

from inpaint_encode.errors import UsageError
from inpaint_encode.settings import Source
from inpaint_encode.sources import open_source
from inpaint_encode.stores.base import Access
from tests.unit.sources.make_sources import embedded, found_pairs, noise, touch, write_parquet, write_tar


@pytest.mark.parametrize("given", [{"anonymous": True}, {"requester_pays": True}, {"endpoint_url": "http://x:1"}])
def test_options_for_buckets_without_a_bucket_are_an_error(tmp_path, given):
    touch(tmp_path, "i/a.png", "m/a.png")
    with pytest.raises(UsageError, match=next(iter(given)).replace("_", "-")):
        open_source(Source(images=f"{tmp_path}/i", masks=f"{tmp_path}/m"), Access(**given))


def test_images_that_are_their_own_masks_in_every_format(tmp_path):
    write_parquet(f"{tmp_path}/uris.parquet", {"image": ["a.png", "b.png"], "caption": ["x", "y"]})
    write_parquet(f"{tmp_path}/rows.parquet", {"image": [embedded(1)], "mask": [embedded(2)]})
    write_tar(f"{tmp_path}/x.tar", {"s.png": noise(1)})
    for name, keys in {"uris.parquet": ["a", "b"], "rows.parquet": ["rows/0"], "x.tar": ["x/s"]}.items():
        pairs = found_pairs(Source(pairs=f"{tmp_path}/{name}", mask_column="image"))
        assert [pair["key"] for pair in pairs] == keys
        for pair in pairs:
            assert (pair["mask_uri"], pair["mask_version"]) == (pair["image_uri"], pair["image_version"])
