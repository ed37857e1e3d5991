"""Checks of the CPU, of torch and of GPUs."""

import pytest
import torch

from inpaint_encode.tools.doctor import device
from inpaint_encode.tools.doctor.device import check_cpu, check_gpus


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
    monkeypatch.delenv(device.LOGICAL_GPUS, raising=False)
    for given, level in ((False, "warning"), (True, "problem")):
        (finding,) = check_gpus(tmp_path / "none", gpu_reserved=given)
        assert (finding.level, "there is no NVIDIA driver" in finding.found) == (level, True)
    monkeypatch.setenv(device.LOGICAL_GPUS, "1")
    (finding,) = check_gpus(tmp_path / "none", gpu_reserved=True)
    assert finding.level == "ok"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_each_gpu_computes(tmp_path):
    findings = list(check_gpus(tmp_path / "none", gpu_reserved=True))
    assert len(findings) == torch.cuda.device_count()
    assert all("compute capability" in finding.found for finding in findings)
    assert all(finding.level != "problem" for finding in findings)
