"""The facade on a real S3 server and on a disk: both behave alike."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from inpaint_encode.stores import storage
from inpaint_encode.stores.storage import ABSENT, Conflict
from tests.buckets import fill, in_threads, listed

ODD_NAMES = [
    "plain.png", "two words.png", "trail .png", "ümlaut.png", "日本.png", "😀.png", "h#sh", "100%", "p%20c", "a+b",
    "a..b", "..x", "q?x=1&y=2", "[x]*", "til~de", "'q'\"", "semi;colon", "@$!", "{b}^`|", "dot.", "a,b=c", "<x>",
    "file?versionId=1",
]  # fmt: skip


class TestEveryBackend:
    @pytest.mark.parametrize("size", [0, 1, 12_000_000])
    def test_read_returns_the_written_bytes_and_version(self, prefix, size):
        data = os.urandom(size)
        version = storage.write(f"{prefix}/a/b.bin", data)
        assert storage.read(f"{prefix}/a/b.bin") == (data, version)
        assert listed(prefix) == {"a/b.bin": (size, version)}

    @pytest.mark.parametrize("size", [0, 99, 100, 101, 300_000])
    def test_a_range_has_the_requested_length_or_ends_with_the_object(self, prefix, size):
        data = os.urandom(size)
        storage.write(f"{prefix}/x", data)
        assert storage.read_range(f"{prefix}/x", 0, 100).data == data[:100]

    def test_concurrent_writes_get_different_versions(self, prefix):
        versions = in_threads(lambda number: storage.write(f"{prefix}/x", b"%04d" % number))
        assert len(set(versions)) == 16
        data, version = storage.read(f"{prefix}/x")
        assert version == versions[int(data)]

    def test_names_with_special_characters(self, prefix):
        folder = f"{prefix}/sp ace #%41+ü"
        sizes = {name: len(name.encode()) for name in ODD_NAMES}
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: storage.write(f"{folder}/{name}", name.encode()), ODD_NAMES))
        assert {path: size for path, (size, _) in listed(folder).items()} == sizes
        assert {path.rpartition("/")[2] for path in listed(prefix)} == sizes.keys()
        assert [name for name in ODD_NAMES if storage.read(f"{folder}/{name}").data != name.encode()] == []
        for name in ODD_NAMES:
            storage.delete(f"{folder}/{name}")
        assert listed(prefix) == {}

    def test_a_listing_is_recursive_and_excludes_names_that_only_start_alike(self, prefix):
        for name in ("ab/x", "ab/c/d/y", "abc/x", "ab.txt", "ab-x/z"):
            storage.write(f"{prefix}/{name}", b"1")
        assert listed(f"{prefix}/ab").keys() == {"x", "c/d/y"}
        assert listed(f"{prefix}/a") == {}
        assert listed(prefix).keys() == {"ab/x", "ab/c/d/y", "abc/x", "ab.txt", "ab-x/z"}

    def test_an_unused_prefix_lists_nothing(self, prefix):
        assert listed(prefix) == {}

    def test_a_listing_of_several_pages_has_each_object_once(self, prefix):
        names = [f"{number:05d} #%+ü.png" for number in range(1100)]
        fill(prefix, names)
        assert sorted(listed(prefix)) == names

    def test_a_missing_object_is_not_found_and_can_be_deleted(self, prefix):
        with pytest.raises(FileNotFoundError):
            storage.read(f"{prefix}/none")
        with pytest.raises(FileNotFoundError):
            storage.read_range(f"{prefix}/none", 0, 100)
        storage.delete(f"{prefix}/none")
        storage.write(f"{prefix}/x", b"1")
        storage.delete(f"{prefix}/x")
        with pytest.raises(FileNotFoundError):
            storage.read(f"{prefix}/x")


class TestExpectedVersions:
    def test_only_the_expected_version_is_replaced(self, prefix):
        uri = f"{prefix}/x"
        first = storage.write(uri, b"first", expect=ABSENT)
        second = storage.write(uri, b"second", expect=first)
        for expect in (ABSENT, first, '"no-such-version"'):
            with pytest.raises(Conflict):
                storage.write(uri, b"third", expect=expect)
        assert storage.read(uri) == (b"second", second)

    def test_a_version_of_a_missing_object_conflicts_and_creates_nothing(self, prefix):
        with pytest.raises(Conflict):
            storage.write(f"{prefix}/x", b"1", expect='"some-version"')
        assert listed(prefix) == {}

    def test_one_of_16_concurrent_creates_wins(self, prefix):
        for uri in rounds(prefix):
            outcomes = in_threads(lambda number: storage.write(uri, b"by %02d" % number, expect=ABSENT))  # noqa: B023
            self.assert_one_won(uri, outcomes)

    def test_one_of_16_concurrent_replacements_wins(self, prefix):
        for uri in rounds(prefix):
            version = storage.write(uri, b"of old")
            outcomes = in_threads(lambda number: storage.write(uri, b"by %03d" % number, expect=version))  # noqa: B023
            self.assert_one_won(uri, outcomes)

    def test_a_repeated_write_once_returns_the_version_of_the_first(self, prefix):
        uri = f"{prefix}/x"
        first = storage.write_once(uri, b"first")
        assert storage.write_once(uri, b"first") == first
        second = storage.write_once(uri, b"second", expect=first)
        assert storage.write_once(uri, b"second", expect=first) == second
        assert storage.read(uri) == (b"second", second)

    def test_write_once_replaces_no_other_contents(self, prefix):
        uri = f"{prefix}/x"
        version = storage.write(uri, b"others")
        for expect in (ABSENT, '"no-such-version"'):
            with pytest.raises(Conflict):
                storage.write_once(uri, b"ours", expect=expect)
        assert storage.read(uri) == (b"others", version)
        with pytest.raises(Conflict):
            storage.write_once(f"{prefix}/missing", b"ours", expect=version)

    def test_one_of_16_concurrent_write_once_wins(self, prefix):
        for uri in rounds(prefix):
            self.assert_one_won(uri, in_threads(lambda number: storage.write_once(uri, b"by %02d" % number)))  # noqa: B023

    def assert_one_won(self, uri: str, outcomes: list[object]) -> None:
        winners = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, str)]
        assert len(winners) == 1, outcomes
        assert {type(outcome) for outcome in outcomes} == {str, Conflict}
        data, version = storage.read(uri)
        assert (int(data.split()[-1]), version) == (winners[0], outcomes[winners[0]])
        assert len(listed(uri.rpartition("/")[0])) == 1


def rounds(prefix: str) -> list[str]:
    """Return objects to race for: one on S3, where the server decides, and more on a disk, where this code does."""
    return [f"{prefix}/{number}/x" for number in range(1 if prefix.startswith("s3://") else 60)]


class TestUris:
    @pytest.mark.parametrize(
        ("given", "normal"),
        [
            ("s3://bucket/a/", "s3://bucket/a"),
            ("https://host/a.png?v=1", "https://host/a.png?v=1"),
            ("file:///data/x/", "/data/x"),
            ("/data/x", "/data/x"),
        ],
    )
    def test_uris_are_normalized(self, given, normal):
        assert storage.normalize_uri(given, storage.READABLE) == normal

    @pytest.mark.parametrize("given", ["s3://", "ftp://host/x", "gs://bucket/x", "https://host/x"])
    def test_only_some_schemes_can_be_written(self, given):
        with pytest.raises(ValueError, match="is not supported; use s3://bucket/prefix, file:///path or a path"):
            storage.normalize_uri(given)

    def test_credentials_in_a_uri_are_rejected(self):
        with pytest.raises(ValueError, match="must not contain credentials") as raised:
            storage.normalize_uri("https://me:5ec2e7@host/x", storage.READABLE)
        assert "5ec2e7" not in str(raised.value)

    @pytest.mark.parametrize("uri", ["gs://bucket/x", "http://127.0.0.1:1/x"])
    def test_writes_and_deletes_fail_where_only_reads_are_supported(self, uri):
        for call in (lambda: storage.write(uri, b"1"), lambda: storage.delete(uri)):
            with pytest.raises(OSError, match="can only be read"):
                call()
