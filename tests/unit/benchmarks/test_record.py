from datetime import date

import torch

from jobs.benchmarks.figures import Figure, Ratio
from jobs.benchmarks.record import Hardware, Record, Section

FIGURES = (Figure("job", "ms CPU/pair", (6.0, 5.0, 7.0)), Figure("D | alone", "ms CPU/pair", (3.0, 2.5, 3.5)))


def test_the_file_has_settings_versions_and_tables(tmp_path):
    section = Section("CPU", "Everything around the VAE.", FIGURES, (Ratio("job over D", *FIGURES),))
    hardware = Hardware("Some CPU @ 2.00GHz", 2, 24.6, ())
    record = Record("No VAE", hardware, {"pairs": 4000}, [section], date(2026, 1, 2))
    path = record.write(tmp_path / "records")
    assert path.name == "no-vae_2-cores-some-cpu-2.00ghz_2026-01-02.md"
    text = path.read_text()
    lines = text.splitlines()
    assert "| job | ms CPU/pair | 6.00 (5.00..7.00) | 3 |" in lines
    assert "| D \\| alone | ms CPU/pair | 3.00 (2.50..3.50) | 3 |" in lines
    assert "| job over D | ratio | 2.00 (2.00..2.00) | 3 |" in lines
    assert "Everything around the VAE. Measured 3 times." in lines
    assert "| pairs | 4000 |" in lines
    assert f"| torch | {torch.__version__.partition('+')[0]} |" in text.replace("+cpu", "")
    assert "older record" in text


def test_calculated_figures_are_marked():
    section = Section("Extrapolation", "", FIGURES[:1], measured=False)
    assert list(section.rows) == [("job", "ms CPU/pair", "6.00", "calculated")]
    assert section.repeats == "Calculated from other sections."


def test_hardware_of_this_machine():
    hardware = Hardware.here()
    assert hardware.cpu and hardware.cores >= 1 and hardware.memory_gb > 0.5
    assert len(hardware.gpus) == torch.cuda.device_count()
