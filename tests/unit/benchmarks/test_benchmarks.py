"""The benchmark's parts measure what they say; nothing here is held against a clock."""

import io
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from rich.console import Console

from inpaint_encode import encode_for_inpaint, load_vae, open_latents
from inpaint_encode.core.decode import PairDecoder
from inpaint_encode.core.geometry import Sizing
from inpaint_encode.core.transform import grow_mask
from inpaint_encode.demo.pairs import upload
from inpaint_encode.settings import VaeSource
from jobs.benchmarks.compare import contest
from jobs.benchmarks.cpu import CpuMeter
from jobs.benchmarks.data import MIXED, ONE_SIZE, SMALL, BenchSet, pairs_below, write_pairs
from jobs.benchmarks.decode import bare_decoding, decode_bare
from jobs.benchmarks.dilation import growth_section
from jobs.benchmarks.fake_vae import NullVae, WaitingVae
from jobs.benchmarks.fetch import fetch_section
from jobs.benchmarks.figures import Figure, Ratio, in_turn, number
from jobs.benchmarks.kernel import default_encode, encoder_flop, kernel_section, matmul_peak, sd_vae
from jobs.benchmarks.peers.contestant import Contestant, LoadStandIn, LoadVae, Task
from jobs.benchmarks.peers.loader import LOADER
from jobs.benchmarks.peers.script import SCRIPT
from jobs.benchmarks.peers.steps import dilate, prepare
from jobs.benchmarks.reading import NpzFolder, by_pyarrow, reading_section, write_rows
from jobs.benchmarks.record import Hardware, Record, Section
from jobs.benchmarks.repeatable import repeatable_section

FEW = BenchSet("four small sizes", ((64, 64), (83, 61), (64, 96), (75, 130)))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"), FEW, 10, distinct=8)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads that wait for each other on a busy machine make small work slow."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def burn(seconds):
    start = time.thread_time()
    while time.thread_time() - start < seconds:
        pass


def decoded(pair):
    decoder = PairDecoder(sizing=Sizing(multiple=8))
    image = decoder.image(Path(pair.image).read_bytes())
    return image.pixels, decoder.mask(Path(pair.mask).read_bytes(), image)


def expected(pair, vae, grow_mask_by=6):
    """What the contract makes of a pair, from the package's own function."""
    image, mask = decode_bare(pair)
    pixels, levels = (torch.from_numpy(values.astype(np.float32) / 255)[None] for values in (image, mask))
    samples, noise_mask = encode_for_inpaint(pixels, levels, vae, grow_mask_by)
    return samples[0].numpy().astype(np.float16), noise_mask[0].numpy().astype(np.uint8)


class TestData:
    def test_sizes_take_turns_and_files_repeat(self, pairs):
        sizes = [Image.open(pair.image).size for pair in pairs]
        assert sizes == [FEW.sizes[index % 8 % 4] for index in range(10)]
        assert [Image.open(pair.mask).size for pair in pairs] == sizes
        assert Path(pairs[9].image).samefile(pairs[1].image)
        assert len({Path(pair.image).read_bytes() for pair in pairs}) == 8

    def test_files_are_what_they_say(self, pairs):
        for pair in pairs:
            with Image.open(pair.image) as image, Image.open(pair.mask) as mask:
                assert (image.format, image.mode, mask.format, mask.mode) == ("JPEG", "RGB", "PNG", "L")
                assert 0 < np.asarray(mask).mean() < 250

    def test_the_same_pairs_each_time(self, pairs, tmp_path):
        again = write_pairs(tmp_path / "again", FEW, 3)
        assert [Path(pair.image).read_bytes() for pair in again] == [Path(p.image).read_bytes() for p in pairs[:3]]

    def test_the_sets(self):
        assert ONE_SIZE.sizes == ((512, 512),)
        assert SMALL.sizes == ((64, 64),)
        assert len(set(MIXED.sizes)) == 12
        assert max(max(size) for size in MIXED.sizes) == 1024
        assert [pair.key for pair in pairs_below("s3://b/p", 1001)][-1] == "0001/0001000"


class TestFigures:
    def test_median_least_and_greatest(self):
        figure = Figure("decode", "ms", (4.0, 3.0, 11.0))
        assert (figure.median, figure.minimum, figure.maximum) == (4.0, 3.0, 11.0)
        assert str(figure) == "4.00 (3.00..11.0)"
        assert str(Figure("decode", "ms", (1234.5,))) == "1,234 (once)"
        with pytest.raises(ValueError, match="no samples"):
            Figure("decode", "ms", ())

    def test_a_ratio_is_taken_sample_by_sample(self):
        """The quotient of the medians would be 3."""
        ratio = Ratio("r", Figure("a", "ms", (2.0, 6.0, 30.0)), Figure("b", "ms", (1.0, 2.0, 3.0)))
        assert ratio.figure.samples == (2.0, 3.0, 10.0)
        with pytest.raises(ValueError, match="in turn"):
            Ratio("r", Figure("a", "ms", (2.0,)), Figure("b", "s", (1.0,)))
        with pytest.raises(ValueError, match="2 samples in ms over 1 in ms"):
            Ratio("r", Figure("a", "ms", (2.0, 3.0)), Figure("b", "ms", (1.0,)))

    def test_measures_take_turns(self):
        calls = []
        figures = in_turn("s", {name: lambda name=name: calls.append(name) or len(calls) for name in "ab"}, 2)
        assert "".join(calls) == "baabba"
        assert figures["a"].samples == (3, 6)
        assert figures["b"].samples == (4, 5)

    def test_numbers(self):
        assert [number(value) for value in (0.1234, 1.234, 12.34, 1234.5)] == ["0.123", "1.23", "12.3", "1,234"]


class TestCpu:
    BURN = "import time\nwhile time.process_time() < 0.4: pass"

    def test_a_child_that_was_waited_for_counts(self):
        with CpuMeter() as meter:
            before = meter.read()
            subprocess.run([sys.executable, "-c", self.BURN], check=True)
            assert 0.35 <= meter.read().since(before).seconds < 2  # clocks tick

    def test_a_child_that_its_parent_forgets_counts(self):
        """As Ray's raylet does: the kernel adds the child's time to nobody's."""
        forget = "import signal, subprocess, sys\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        forget += "subprocess.Popen([sys.executable, '-c', sys.argv[1]])\nprint(flush=True)\nsys.stdin.read()"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with CpuMeter(period=0.02) as meter:
            before = meter.read()
            parent = subprocess.Popen([sys.executable, "-c", forget, self.BURN], **pipes)
            parent.stdout.readline()
            while psutil.Process(parent.pid).children():
                time.sleep(0.02)
            assert 0.3 <= meter.read().since(before).seconds < 2
            parent.communicate()
            assert 0.3 <= meter.read().since(before).seconds < 2

    def test_an_excluded_process_does_not_count(self):
        burn = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        with CpuMeter(exclude=[burn.pid]) as meter, CpuMeter() as other:
            before, seen = meter.read(), other.read()
            deadline = time.monotonic() + 60
            while (apart := other.read().since(seen).seconds - meter.read().since(before).seconds) < 0.3:
                assert time.monotonic() < deadline, apart
                time.sleep(0.02)
            burn.kill()
            burn.wait()


class TestParts:
    def test_bare_decoding_is_of_both_files(self, pairs):
        image, mask = decode_bare(pairs[1])
        assert (image.shape, image.dtype, mask.shape, mask.dtype) == ((61, 83, 3), np.uint8, (61, 83), np.uint8)
        assert bare_decoding(pairs)() > 0

    def test_fetching_is_held_against_decoding(self, s3, tmp_path):
        local = write_pairs(tmp_path / "few", SMALL, 3)
        upload(tmp_path / "few", s3.uri("bench-fetch"))
        section = fetch_section(pairs_below(s3.uri("bench-fetch"), 3), local, repeats=2)
        unit, read, cat, one_read, _ = section.figures
        assert (unit.unit, one_read.unit) == ("ms CPU/pair", "ms CPU/GET")
        assert one_read.median == pytest.approx(read.median / 2)
        assert [ratio.numerator for ratio in section.ratios] == [read, cat]
        with pytest.raises(FileNotFoundError):
            fetch_section(pairs_below(s3.uri("bench-fetch"), 4), local, repeats=1)

    @pytest.mark.parametrize("side", [0, 1, 2, 5, 6, 16, 64])
    def test_convolution_and_doubling_agree(self, side):
        mask = (torch.rand(1, 90, 101, generator=torch.Generator().manual_seed(side)) > 0.995).float()
        assert torch.equal(dilate(mask, side), grow_mask(mask.to(torch.uint8), side))

    def test_growth_leaves_the_dear_convolutions_out(self):
        section = growth_section(full=False, repeats=1)
        names = [figure.name for figure in section.figures]
        assert len([name for name in names if name.startswith("doubling")]) == 6
        cheap = ["512 x 512, side 6", "512 x 512, side 16", "1024 x 1024, side 6"]
        assert [name for name in names if name.startswith("convolution")] == [f"convolution, {it}" for it in cheap]
        assert [ratio.name for ratio in section.ratios] == [f"convolution over doubling, {it}" for it in cheap]

    def test_a_contest_charges_for_the_pairs_between(self, pairs, tmp_path):
        """A program that uses 0.2 s at its start and 0.04 s a pair costs 40 ms a pair."""
        seen = []

        def run(task):
            seen.append(len(task.pairs))
            assert not list(task.output.iterdir())
            assert torch.get_num_threads() == 1
            burn(0.2 + 0.04 * len(task.pairs))
            (task.output / "one").touch()

        task = Task(pairs, LoadStandIn(), tmp_path / "out")
        with CpuMeter(period=5) as meter:
            section = contest("Mine", [Contestant("mine", run)], task, pairs, meter, few=2, repeats=1)
        assert seen == [2, 10]
        assert not task.output.exists()
        unit, mine, pace, *_ = section.figures
        assert 30 < mine.median < 60
        assert pace.median > 35
        assert section.ratios[0].figure.median == pytest.approx(mine.median / unit.median)


class TestReading:
    @pytest.fixture(scope="class")
    def stored(self, tmp_path_factory):
        return write_rows(tmp_path_factory.mktemp("rows"), 5)

    def test_all_read_the_same_rows(self, stored):
        from_npz = list(NpzFolder(stored.npz))
        for way, output in stored.outputs.items():
            ours, plain = list(open_latents(output)), list(by_pyarrow(stored.files(way)))
            assert [row["key"] for row in ours] == [f"0000/{number:07}" for number in range(5)]
            for row, arrays, npz in zip(ours, plain, from_npz, strict=True):
                assert row.keys() == arrays.keys()
                for name, tensor in npz.items():
                    assert torch.equal(row[name], tensor)
                    assert np.array_equal(arrays[name], tensor.numpy())

    def test_ratios_are_over_both_others(self, stored):
        section = reading_section("a disk", stored, repeats=1)
        assert {figure.unit for figure in section.figures} == {"rows/s"}
        figures = {figure.name: figure for figure in section.figures}
        assert [ratio.numerator for ratio in section.ratios] == [
            figures[f"open_latents, {way} masks"] for way in ("tensor", "tensor", "packed", "packed")
        ]
        assert {ratio.denominator.name for ratio in section.ratios} == {
            "pyarrow, tensor masks", "pyarrow, packed masks", "DataLoader over .npz"
        }  # fmt: skip


class TestStandIns:
    def test_arrays_and_tensors_give_the_same(self, pairs):
        pixels, mask = decoded(pairs[1])
        of_levels = NullVae().encode_levels(pixels[None], mask[None])
        of_tensor = NullVae()(prepare(pairs[1]).pixels[None])
        assert (of_levels.shape, of_levels.dtype) == ((1, 4, 7, 10), np.float16)
        np.testing.assert_allclose(of_levels, of_tensor.numpy(), atol=1e-3)

    def test_repainted_pixels_are_grey(self):
        pixels = np.full((2, 16, 24, 3), 255, np.uint8)
        mask = np.zeros((2, 16, 24), np.uint8)
        mask[1, 8:, 16:] = 1
        latents = NullVae().encode_levels(pixels, mask)
        assert (latents[0] == 1).all()
        assert (latents[1, :, 1, 2] == 0).all()
        assert (latents == 1).sum() == latents.size - 4

    def test_waiting_costs_time_and_changes_nothing(self, pairs):
        pixels, mask = decoded(pairs[0])
        start = time.monotonic()
        latents = WaitingVae(0.05).encode_levels(pixels[None].repeat(2, 0), mask[None].repeat(2, 0))
        assert time.monotonic() - start >= 0.1
        np.testing.assert_array_equal(latents[:1], NullVae().encode_levels(pixels[None], mask[None]))


@pytest.mark.parametrize("peer", [SCRIPT, LOADER], ids=lambda peer: peer.name)
class TestPeers:
    def test_values_are_the_contracts(self, peer, pairs, vae_folder, tmp_path):
        vae = load_vae(VaeSource(vae=vae_folder))
        peer.run(Task(pairs, LoadVae(vae_folder), tmp_path))
        assert len(list(tmp_path.rglob("*.npz"))) == len(pairs)
        for pair in pairs:
            samples, noise_mask = expected(pair, vae)
            with np.load(tmp_path / f"{pair.key}.npz") as written:
                np.testing.assert_array_equal(written["noise_mask"], noise_mask, strict=True)
                np.testing.assert_allclose(written["samples"], samples, atol=1e-3, strict=True)

    def test_a_stand_in_takes_the_vaes_place(self, peer, pairs, tmp_path):
        peer.run(Task(pairs, LoadStandIn(), tmp_path, grow_mask_by=3))
        for pair in pairs:
            pixels, mask = decoded(pair)
            with np.load(tmp_path / f"{pair.key}.npz") as written:
                latents = NullVae().encode_levels(pixels[None], mask[None])[0]
                np.testing.assert_allclose(written["samples"], latents, atol=1e-3)
                np.testing.assert_array_equal(written["noise_mask"][0], grow_mask(torch.from_numpy(mask), 3))


class TestKernel:
    def test_the_operations_of_a_convolution(self):
        """The first convolution at 64 x 64 alone is 2 x 27 x 128 operations a pixel; the whole grows with the area."""
        vae = sd_vae()
        small, large = encoder_flop(vae, 64), encoder_flop(vae, 128)
        assert small > 2 * 27 * 128 * 64 * 64
        assert 4 < large / small < 4.1
        assert encoder_flop(vae, 512) == pytest.approx(1.117e12, rel=1e-3)

    def test_a_section_compares_the_two_ways(self, vae_folder):
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

    def test_spreads_and_the_cost_of_repeatable_rows(self, vae_folder):
        section = repeatable_section("cpu", 64, repeats=1, vae=load_vae(VaeSource(vae=vae_folder)))
        exact, brain, together, alone = section.figures
        assert len(exact.samples) == 8
        assert 0 <= exact.maximum < 100
        assert 0 <= brain.maximum < 100_000
        assert section.ratios[0].figure.median == pytest.approx(together.median / alone.median)
        assert not torch.are_deterministic_algorithms_enabled()

    def test_the_peak_is_of_this_machine(self):
        assert 0.001 < matmul_peak(torch.device("cpu"), torch.float32, window_s=0.01) < 1000


class TestRecord:
    FIGURES = (Figure("job", "ms CPU/pair", (6.0, 5.0, 7.0)), Figure("D | bare", "ms CPU/pair", (3.0, 2.5, 3.5)))

    def record(self) -> Record:
        section = Section("CPU", "Everything around the VAE.", self.FIGURES, (Ratio("job over D", *self.FIGURES),))
        hardware = Hardware("Some CPU @ 2.00GHz", 2, 24.6, ())
        return Record("No VAE", hardware, {"pairs": 4000}, [section], date(2026, 1, 2))

    def test_the_file_says_everything(self, tmp_path):
        path = self.record().write(tmp_path / "records")
        assert path.name == "no-vae_2-cores-some-cpu-2.00ghz_2026-01-02.md"
        lines = path.read_text().splitlines()
        assert "| job | ms CPU/pair | 6.00 (5.00..7.00) | 3 |" in lines
        assert "| D \\| bare | ms CPU/pair | 3.00 (2.50..3.50) | 3 |" in lines
        assert "| job over D | ratio | 2.00 (2.00..2.00) | 3 |" in lines
        assert "Everything around the VAE. Measured 3 times." in lines
        assert "| pairs | 4000 |" in lines
        assert f"| torch | {torch.__version__.partition('+')[0]} |" in path.read_text().replace("+cpu", "")
        assert "older record" in path.read_text()

    def test_the_terminal_shows_the_same_rows(self):
        text = io.StringIO()
        self.record().show(Console(file=text, width=120))
        assert all(word in text.getvalue() for word in ("job over D", "6.00 (5.00..7.00)", "Measured 3 times."))

    def test_this_machine(self):
        hardware = Hardware.here()
        assert hardware.cpu and hardware.cores >= 1 and hardware.memory_gb > 0.5
        assert len(hardware.gpus) == torch.cuda.device_count()
