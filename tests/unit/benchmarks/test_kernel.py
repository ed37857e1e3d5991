import pytest
import torch

from inpaint_encode import load_vae
from inpaint_encode.settings import VaeSource
from jobs.benchmarks.kernel import default_encode, encoder_flop, kernel_section, matmul_peak, sd_vae


def test_operations_of_the_encoder():
    """The first convolution at 64 x 64 has 2 x 27 x 128 operations per pixel; the total grows with the area."""
    vae = sd_vae()
    small, large = encoder_flop(vae, 64), encoder_flop(vae, 128)
    assert small > 2 * 27 * 128 * 64 * 64
    assert 4 < large / small < 4.1
    assert encoder_flop(vae, 512) == pytest.approx(1.117e12, rel=1e-3)


def test_a_section_compares_two_encoders(vae_folder):
    vae = load_vae(VaeSource(vae=vae_folder))
    seen = []

    def tune(mine):
        assert mine is not vae
        return lambda pixels: seen.append(tuple(pixels.shape)) or default_encode(mine)(pixels)

    section = kernel_section(tune, device="cpu", sides=(32,), batches=(1, 2), repeats=1, window_s=0.01, vae=vae)
    assert {shape[0] for shape in seen} == {1, 2}
    assert {shape[1:] for shape in seen} == {(3, 32, 32)}
    assert [figure.unit for figure in section.figures] == ["images/s", "images/s", "TFLOP/s", "%", "%"]
    default, tuned, peak, share, _ = section.figures
    flop = encoder_flop(vae, 32)
    assert share.median == pytest.approx(100 * default.median * flop / (peak.median * 1e12))
    assert section.ratios[0].figure.median == pytest.approx(tuned.median / default.median)


def test_the_matrix_product_gives_a_rate():
    assert 0 < matmul_peak(torch.device("cpu"), torch.float32, window_s=0.01) < 1000
