"""Names from storage stay below their folder, and so does every name that the product makes."""

import posixpath
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inpaint_encode.output.index_files import unit_index_path, unit_keys_path
from inpaint_encode.output.plan import chunk_name
from inpaint_encode.output.shards import lease_path
from inpaint_encode.output.state import OutputState
from inpaint_encode.settings import RunOptions
from inpaint_encode.stores import storage
from inpaint_encode.stores.names import validate_name
from inpaint_encode.tools.export.compaction import export_id, keys_path
from inpaint_encode.tools.export.formats import SUFFIXES, is_file_of_row, key_to_path

PARTS = st.sampled_from(["", ".", "..", "a", "a b", "ü", "_export", "\x00", "\n", "\x1b[2J", "\\", "C:", "/", "%2E%2E"])
NAMES = st.text() | st.lists(PARTS | st.text(max_size=5), max_size=6).map("/".join)
ROOTS = ["/mnt/out", "s3://bucket/out"]


def stays_below(root: str, path: str) -> bool:
    scheme, _, rest = path.rpartition("://")
    return f"{scheme}://{posixpath.normpath(rest)}".removeprefix("://").startswith(f"{root}/")


@given(NAMES)
def test_a_valid_name_stays_below_its_folder(name):
    try:
        valid = validate_name(name)
    except ValueError as error:
        assert str(error).isprintable()
        return
    assert all(stays_below(root, storage.join(root, valid)) for root in ROOTS)
    assert not re.search(r"[\x00-\x1f\x7f\\]", valid)
    assert not valid.startswith("/")


@pytest.mark.parametrize(
    "name",
    [
        *("", "/", "..", ".", "../x", "a/../x", "a/..", "/etc/passwd", "a//b", "a/", "./a", "C:\\x", "c:x"),
        *("a\x00b", "a\nb", "a\\..\\b", "\ud800", "a" * 5_000),
    ],
)
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="no relative path"):
        validate_name(name)


def test_a_pattern_limits_the_names():
    assert validate_name("a-1.json", re.compile(r"a-\d\.json")) == "a-1.json"
    with pytest.raises(ValueError, match="no name of this format"):
        validate_name("a-1.json.x", re.compile(r"a-\d\.json"))


@given(st.integers(0, 999_999), st.integers(0, 99_999), st.integers(0, 9_999))
def test_names_of_an_output_s_files_stay_in_it(unit, number, revision):
    chunk = chunk_name(unit, number)
    index = unit_index_path("0a1b2c3d", unit, revision)
    for root in ROOTS:
        state = OutputState(root, "0a1b2c3d", "")
        paths = [index, unit_keys_path(index), keys_path(chunk), f"{export_id('0a1b2c3d')}-{chunk}.parquet"]
        uris = [state.data_uri(chunk), state.rejects_uri(chunk), *map(state.uri, paths)]
        uris.append(state.uri(lease_path(RunOptions(shard=f"{min(number, 9)}/10"))))
        assert all(stays_below(root, uri) for uri in uris)
        assert [validate_name(uri.removeprefix(f"{root}/")) for uri in uris]


@given(NAMES)
def test_names_of_exported_rows_stay_in_the_export_and_are_accepted_when_it_is_updated(key):
    for dots in (True, False):
        path = key_to_path(key, dots=dots)
        for suffix in (*SUFFIXES["comfyui"], *SUFFIXES["safetensors"]):
            for name in (path + suffix, f"_original/{path}{suffix}"):
                assert all(stays_below(root, storage.join(root, name)) for root in ROOTS)
                assert is_file_of_row(name, (suffix,))
                assert validate_name(name) == name


@given(NAMES)
def test_files_of_rows_have_safe_names(name):
    if is_file_of_row(name, (".latent",)):
        assert all(stays_below(root, storage.join(root, name)) for root in ROOTS)


@pytest.mark.parametrize("path", ["", "_report.json.x", "_job.json", "../x.parquet", "a.parquet", "_plan/../x.parquet"])
def test_an_output_deletes_only_files_of_its_format(tmp_path, path):
    state = OutputState(str(tmp_path / "out"), "0a1b2c3d", "")
    with pytest.raises(ValueError, match=r"no name of this format|no relative path"):
        state.delete([path])
