"""What a VAE worker takes of a cluster, and how many there may be, by what the cluster has now."""

import os
import stat
import threading
from pathlib import Path

import pytest

from inpaint_encode.errors import UsageError
from inpaint_encode.job.cluster import needed_resources, private_folder, vae_workers_for
from inpaint_encode.job.progress import Display, Reminder
from inpaint_encode.settings import Workers


@pytest.mark.parametrize(
    ("gpus", "options", "expected"),
    [
        (0, {}, (0.0, 2.0, 1, 1)),
        (0, {"max_workers": 3, "min_workers": 2}, (0.0, 2.0, 2, 3)),
        (2, {}, (1.0, 0.0, 1, 2)),
        (2, {"gpus_per_worker": "0.5"}, (0.5, 0.0, 1, 4)),
        (2, {"gpus_per_worker": "0"}, (0.0, 2.0, 1, 1)),
        (2, {"encode_cpus": "3"}, (1.0, 3.0, 1, 2)),
        (0, {"gpus_per_worker": "1", "max_workers": 8}, (1.0, 0.0, 1, 8)),
        (0, {"gpus_per_worker": "1", "max_workers": 8, "min_workers": 4}, (1.0, 0.0, 4, 8)),
    ],
)
def test_what_workers_take(gpus, options, expected):
    assert vae_workers_for(Workers(**options), gpus, own=False) == expected


def test_a_cluster_without_gpus_as_yet_must_be_told_for_how_many_workers():
    with pytest.raises(UsageError, match="--max-workers"):
        vae_workers_for(Workers(gpus_per_worker="1"), 0, own=False)


def test_this_machine_never_gets_a_gpu():
    with pytest.raises(UsageError, match=r"more than the GPUs that Ray finds here \(0\)"):
        vae_workers_for(Workers(gpus_per_worker="1", max_workers=8), 0, own=True)


def test_stages_that_would_take_the_same_do_not():
    """Ray would run them in one process, in turn."""
    workers = Workers(encode_cpus="1", fetch_cpus=1.0)
    assert vae_workers_for(workers, 0, own=True).cpus != workers.fetch_cpus


def test_it_is_said_what_a_job_waits_for_until_it_has_come():
    workers = Workers(gpus_per_worker="1", max_workers=2, encode_on="pool=vea", fetch_on="pool=data")
    sentence = needed_resources(workers, vae_workers_for(workers, 0, own=False))
    assert (
        "each VAE worker needs 1 GPU on nodes with pool=vea, and each other task 1 CPU on nodes with pool=data"
        in sentence
    )
    display, twice = Display(), threading.Event()

    def say(line):
        display.say(line)
        if len(display.lines) == 2:
            twice.set()

    with Reminder(say, sentence, 0.02) as reminder:
        assert twice.wait(60)
        reminder.stop()
        reminder._thread.join(60)
        assert not reminder._thread.is_alive()
    assert all(line.endswith(f" s: {sentence}") for line in display.lines)


def test_only_this_user_can_read_the_folder_of_a_local_ray(tmp_path, monkeypatch):
    """Ray makes its own folder public, so the folder around it must not be."""
    folder = Path(private_folder())
    assert folder.name == "ray" and private_folder() == str(folder)
    status = folder.parent.lstat()
    assert stat.S_IMODE(status.st_mode) == 0o700 and status.st_uid == os.getuid()
    assert len(str(folder)) < 40

    public = tmp_path / f"inpaint-encode-{os.getuid()}"
    public.mkdir(mode=0o755)
    monkeypatch.setattr(Path, "is_dir", lambda _: False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    other = Path(private_folder()).parent
    assert other != public and other.parent == tmp_path and stat.S_IMODE(other.stat().st_mode) == 0o700
