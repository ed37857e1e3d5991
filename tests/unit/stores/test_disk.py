"""Files on a disk: links, names, permissions, and interrupted writes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inpaint_encode.stores import disk, storage
from inpaint_encode.stores.storage import ABSENT
from tests.buckets import fill, listed, run_python


def test_links_are_listed_and_cycles_are_not_followed(tmp_path):
    fill(str(tmp_path / "files"), ["a", "b"])
    storage.write(f"{tmp_path}/others/c/d", b"1")
    for name, target in [("dead", "nowhere"), ("self", "self"), ("folder", "../others"), ("up", "..")]:
        (tmp_path / "files" / name).symlink_to(target)
    (tmp_path / "others" / "c" / "back").symlink_to("..")
    assert listed(str(tmp_path / "files")).keys() == {"a", "b", "dead", "self", "folder/c/d"}


def test_a_folder_with_many_files_has_several_pages(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "_PAGE_FILES", 4)
    fill(str(tmp_path / "files"), names := [f"{number}.png" for number in range(10)])
    fill(str(tmp_path / "files" / "more"), names)
    pages = list(storage.list_objects(str(tmp_path / "files")))
    assert [len(page.paths) for page in pages] == [4, 4, 2, 4, 4, 2]
    assert sorted(path for page in pages for path in page.paths) == [*names, *(f"more/{name}" for name in names)]


def test_a_name_that_is_not_utf8_is_returned_as_unreadable(tmp_path):
    fill(str(tmp_path / "files"), ["a"])
    Path(os.fsdecode(os.fsencode(tmp_path / "files") + b"/\xfcb.png")).write_bytes(b"1")
    (page,) = storage.list_objects(str(tmp_path / "files"))
    assert (page.paths, page.unreadable) == (["a"], (r"'\udcfcb.png'",))


def test_a_folder_without_read_permission_is_an_error(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o000)
    code = (
        "import os, sys; from inpaint_encode.stores import storage\n"
        "if os.geteuid() == 0: os.seteuid(65534)\n"
        "try: print(list(storage.list_objects(sys.argv[1])))\n"
        "except PermissionError: print('refused')"
    )
    assert run_python(code, tmp_path / "closed").stdout == "refused\n"


def test_a_full_file_system_keeps_the_older_object_and_no_temporary_file(tmp_path):
    storage.write(f"{tmp_path}/old", b"whole")
    code = (
        "import resource, signal, sys; from inpaint_encode.stores import storage\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
        "for name in ('old', 'new'):\n"
        "    try: storage.write(f'{sys.argv[1]}/{name}', bytes(3_000_000))\n"
        "    except OSError as error: print(error.strerror)"
    )
    assert run_python(code, tmp_path).stdout == "File too large\n" * 2
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert storage.read(f"{tmp_path}/old").data == b"whole"


def test_a_killed_writer_leaves_only_a_temporary_file_that_is_not_listed(tmp_path):
    imports = "import sys; from inpaint_encode.stores import storage"
    code = f"{imports}; storage.write(sys.argv[1] + '/x', bytes(400_000_000))"
    writer = subprocess.Popen([sys.executable, "-c", code, tmp_path])
    while not any(path.stat().st_size for path in tmp_path.iterdir()):
        assert writer.poll() is None
        time.sleep(0.001)
    writer.send_signal(signal.SIGKILL)
    assert writer.wait() == -signal.SIGKILL
    assert [path.name.startswith(storage.TEMPORARY) for path in tmp_path.iterdir()] == [True]
    assert listed(str(tmp_path)) == {}
    assert list(storage.temporary_files(str(tmp_path))) == [str(path) for path in tmp_path.iterdir()]
    storage.write(f"{tmp_path}/x", b"1", expect=ABSENT)


def put(folder, *names):
    for name in names:
        storage.write(f"{folder}/{name}", b"1")


def test_pipes_and_devices_are_not_listed_and_not_read(tmp_path):
    """Whoever opens a pipe waits for ever, and /dev/zero has no end."""
    put(tmp_path, "a")
    os.mkfifo(tmp_path / "pipe.parquet")
    (tmp_path / "zero.parquet").symlink_to("/dev/zero")
    assert listed(str(tmp_path)).keys() == {"a"}
    for name in ("pipe.parquet", "zero.parquet"):
        for read in (storage.read, lambda uri: storage.read_range(uri, 0, 8)):
            with pytest.raises(OSError, match="it is no regular file"):
                read(f"{tmp_path}/{name}")


def test_a_folder_is_not_read(tmp_path):
    with pytest.raises(IsADirectoryError):
        storage.read(str(tmp_path))


def test_links_to_folders_are_found(tmp_path):
    put(tmp_path / "out", "_plan/a", "b")
    put(tmp_path / "home", "c")
    for name, target in [("_index", "../home"), ("_plan/d", "../../home"), ("e", "../home/c"), ("f", "nowhere")]:
        (tmp_path / "out" / name).symlink_to(target)
    output = tmp_path / "out"
    assert list(storage.linked_folders(str(output))) == [f"{output}/_index"]
    assert sorted(storage.linked_folders(str(output), recursive=True)) == [f"{output}/_index", f"{output}/_plan/d"]
    assert list(storage.linked_folders(str(tmp_path / "missing"))) == []


def test_a_write_and_a_deletion_replace_a_link_and_not_its_target(tmp_path):
    put(tmp_path, "target")
    before = storage.read(f"{tmp_path}/target").data
    for change in (lambda uri: storage.write(uri, b"new"), storage.delete):
        (tmp_path / "link").symlink_to("target")
        change(f"{tmp_path}/link")
        assert storage.read(f"{tmp_path}/target").data == before
        assert not (tmp_path / "link").is_symlink()
        (tmp_path / "link").unlink(missing_ok=True)


def test_temporary_files_have_the_names_that_are_written(tmp_path):
    names = [f"_tmp-{'0' * 32}", f"a/_tmp-{'1' * 32}", "_tmp-notes.txt", f"_tmp-{'0' * 33}"]
    put(tmp_path, *names)
    assert sorted(storage.temporary_files(str(tmp_path))) == [f"{tmp_path}/{name}" for name in names[:2]]


def test_a_new_file_in_place_of_a_dead_link_is_an_error_and_no_conflict(tmp_path):
    """A run that finds no lease and cannot write one would try for ever."""
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(OSError, match="it is a link to a file that does not exist; remove it"):
        storage.write_once(f"{tmp_path}/link", b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["link"]
