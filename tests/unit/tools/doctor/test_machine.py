"""Checks of Python, packages, memory, disks, the CPU, torch and GPUs."""

import platform
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from inpaint_encode.job.stages import LOGICAL_GPUS
from inpaint_encode.tools.doctor.machine import (
    RAY_LIMIT,
    Memory,
    check_cpu,
    check_disk,
    check_gpus,
    check_machine,
    check_memory,
    check_packages,
    check_python,
    check_shared_memory,
)

GB = 10**9


def test_this_machine_can_run_the_tests():
    found = {finding.check: finding.level for finding in check_machine()}
    assert list(found) == ["Python", "packages", "memory", "shared memory", "Ray's disk", "disk of the model cache"]
    assert (found["Python"], found["packages"]) == ("ok", "ok")


def test_python_outside_the_required_versions_is_a_problem():
    assert check_python(">=3.11,<4").level == "ok"
    finding = check_python(">=3.99")
    assert (finding.level, finding.found) == ("problem", f"{platform.python_version()} is not supported (needs >=3.99)")


def test_old_and_missing_packages_are_a_problem():
    assert check_packages(["numpy>=1", "nothing-like-it>=1; extra == 'demo'"]).found.startswith("1 package checked")
    finding = check_packages(["numpy>=99", "nothing-like-it>=1", "pyarrow>=1"])
    numpy = __import__("numpy").__version__
    assert finding.level == "problem"
    assert finding.found == f"numpy {numpy} (needs >=99), nothing-like-it is missing (needs >=1)"
    assert "pip install 'numpy>=99' 'nothing-like-it>=1'" in finding.advice


def test_memory_is_limited_by_the_container(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal:       16000000 kB\nMemAvailable:    9000000 kB\n")
    machine_s = Memory(16_000_000 * 1024, 9_000_000 * 1024)
    assert Memory.of_this_machine(tmp_path, tmp_path) == machine_s
    (tmp_path / "memory.max").write_text("max\n")
    assert Memory.of_this_machine(tmp_path, tmp_path) == machine_s
    (tmp_path / "memory.max").write_text(f"{4 * GB}\n")
    (tmp_path / "memory.current").write_text(f"{GB}\n")
    assert Memory.of_this_machine(tmp_path, tmp_path) == Memory(4 * GB, 3 * GB, limited=True)
    (tmp_path / "memory.stat").write_text(f"anon 7\nfile {GB}\ninactive_file {GB // 2}\nactive_file {GB // 4}\n")
    assert Memory.of_this_machine(tmp_path, tmp_path) == Memory(4 * GB, 3 * GB + GB // 4 * 3, limited=True)
    (tmp_path / "memory.max").unlink()
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.limit_in_bytes").write_text(f"{5 * GB}\n")
    (tmp_path / "memory/memory.usage_in_bytes").write_text(f"{GB}\n")
    assert Memory.of_this_machine(tmp_path, tmp_path) == Memory(5 * GB, 4 * GB, limited=True)
    (tmp_path / "memory/memory.stat").write_text("inactive_file 0\ntotal_inactive_file 5\ntotal_active_file 6\n")
    assert Memory.of_this_machine(tmp_path, tmp_path) == Memory(5 * GB, 4 * GB + 11, limited=True)


@pytest.mark.parametrize(
    ("memory", "level"),
    [
        (Memory(16 * GB, 8 * GB), "ok"),
        (Memory(16 * GB, 3 * GB), "warning"),
        (Memory(16 * GB, GB), "problem"),
        (Memory(200 * GB, 9 * GB), "problem"),
    ],
)
def test_level_of_free_memory(memory, level):
    assert check_memory(memory).level == level


def test_shared_memory_below_the_object_store_is_a_warning(tmp_path):
    there = shutil.disk_usage(tmp_path).free
    assert check_shared_memory(tmp_path, Memory(there, there)).level == "ok"
    finding = check_shared_memory(tmp_path, Memory(9 * there, 9 * there))
    assert (finding.level, "--shm-size=" in finding.advice) == ("warning", True)
    assert check_shared_memory(tmp_path / "none", Memory(GB, GB)).level == "warning"


def test_folder_that_cannot_be_written_is_a_problem(tmp_path):
    assert check_disk("disk", tmp_path / "not/there/yet", "OPTION").level == "ok"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "x", Path("/proc/none")):
        finding = check_disk("disk", folder, "OPTION")
        assert (finding.level, "no file can be created in" in finding.found) == ("problem", True)
        assert "set OPTION to a folder" in finding.advice


def test_full_disk_is_a_problem(tmp_path, monkeypatch):
    """A test cannot fill a disk, so the system's answer is replaced."""
    usage = namedtuple("usage", "total used free")
    for free, levels_of_both in ((0, ("problem", "problem")), (4 * GB, ("problem", "ok")), (6 * GB, ("ok", "ok"))):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage(100 * GB, 100 * GB - free, free))
        found = check_disk("Ray's", tmp_path, "OPTION", RAY_LIMIT), check_disk("another", tmp_path, "OPTION")
        assert tuple(finding.level for finding in found) == levels_of_both


def test_cpu_without_avx2_is_a_warning():
    assert [check_cpu(vectors, 8).level for vectors in ("AVX512", "AVX2", "DEFAULT")] == ["ok", "ok", "warning"]


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch is built for CUDA")
def test_driver_without_torch_for_cuda_is_a_problem(tmp_path):
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65\n")
    (finding,) = check_gpus(tmp_path / "version", gpu_reserved=False)
    assert (finding.level, "is built for CPUs" in finding.found) == ("problem", True)
    assert "install torch for CUDA" in finding.advice


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_a_problem_only_if_one_is_reserved(tmp_path, monkeypatch):
    monkeypatch.delenv(LOGICAL_GPUS, raising=False)
    for given, level in ((False, "warning"), (True, "problem")):
        (finding,) = check_gpus(tmp_path / "none", gpu_reserved=given)
        assert (finding.level, "there is no NVIDIA driver" in finding.found) == (level, True)
    monkeypatch.setenv(LOGICAL_GPUS, "1")
    (finding,) = check_gpus(tmp_path / "none", gpu_reserved=True)
    assert finding.level == "ok"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_each_gpu_computes(tmp_path):
    findings = list(check_gpus(tmp_path / "none", gpu_reserved=True))
    assert len(findings) == torch.cuda.device_count()
    assert all("compute capability" in finding.found for finding in findings)
    assert all(finding.level != "problem" for finding in findings)
