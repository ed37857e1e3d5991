"""Keys become file names that are valid, unique, and inside the folder."""

import hashlib
import re
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inpaint_encode.sources.tars import _MEMBER_NAME
from inpaint_encode.tools.export.file_names import key_to_path
from inpaint_encode.tools.export.formats import SUFFIXES, select_format

ODD = {
    "../up": "%2E%2E/up",
    "/abs//x": "%/abs/%/x",
    ".": "%2E",
    "..": "%2E%2E",
    "a/.hidden": "a/.hidden",
    "": "%",
    "a\nb:c?": "a%0Ab%3Ac%3F",
    "%41": "%2541",
    "a.latent/x": "a%2Elatent/x",
    "a.json/b.png/c.png": "a%2Ejson/b%2Epng/c.png",
    "_export/x": "%5Fexport/x",
    "_exported/x": "_exported/x",
    "_MG_0042": "_MG_0042",
    "a/_tmp-1": "a/%5Ftmp-1",
    "https://x/y": "https%3A/%/x/y",
}


@pytest.mark.parametrize("key", ODD)
def test_forbidden_characters_are_escaped(key):
    assert key_to_path(key) == ODD[key]


def test_a_shortened_name_collides_with_no_other_key():
    """Not even with a key whose escaped sign begins like the hash of the other."""
    hashes = ((key, hashlib.sha256(key.encode()).hexdigest()) for key in (f"{at:0201}" for at in count()))
    long, its_hash = next((key, found) for key, found in hashes if found.startswith("25"))
    assert key_to_path(f"{long[:183]}%{its_hash[2:16]}") != key_to_path(long)


KEY = st.text(st.sampled_from("aé大./_%:-\\\n\x7f"), max_size=12) | st.lists(
    st.sampled_from(["", ".", "..", "a", "_export", "_tmp-", "a.json", "a.latent", "a_mask.png", "ü" * 150]), max_size=4
).map("/".join)


@given(st.sets(KEY, max_size=8), st.sampled_from(list(SUFFIXES)))
def test_keys_stay_in_the_folder_and_share_no_file(keys, to):
    form = select_format(to, ["samples", "original_samples", "noise_mask"])
    names = [name for key in sorted(keys) for name in form.names(key)]
    assert len(set(names)) == len(names)
    folders = {name[:at] for name in names for at in range(len(name)) if name[at] == "/"}
    assert not folders & set(names)
    for name in names:
        parts = name.split("/")
        assert not {"", ".", ".."} & set(parts)
        assert parts[0] != "_export"
        assert max(len(part.encode()) for part in parts) < 256
        assert not re.search(r"[\x00-\x1f\\:]|(^|/)_tmp-", name)
        if form.is_tar:
            assert _MEMBER_NAME.match(name)["sample"] in {key_to_path(key, dots=False) for key in keys}
