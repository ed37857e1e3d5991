"""The dated record of a benchmark, a Markdown file with one table per section."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

from .figures import Figure, Ratio, format_number

__all__ = ["Hardware", "Record", "Section"]

_PACKAGES = ("inpaint-encode", "torch", "ray", "pyarrow", "pillow", "diffusers", "obstore", "s3fs", "numpy")
_HEAD = ("what", "unit", "median (minimum..maximum)", "samples")
_RULE = (
    "All ratios are between figures of this run, measured in turn. Do not compare figures with an older record: the "
    "machine and its load differed."
)


@dataclass(frozen=True)
class Hardware:
    """The machine of the benchmark."""

    cpu: str
    cores: int
    """Cores that this process may use."""
    memory_gb: float
    gpus: tuple[str, ...]

    @classmethod
    def here(cls) -> Hardware:
        """Return this machine's hardware."""
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return cls(
            cpu=_cpu_model(),
            cores=len(os.sched_getaffinity(0)),
            memory_gb=psutil.virtual_memory().total / 1e9,
            gpus=tuple(torch.cuda.get_device_name(index) for index in range(count)),
        )

    @property
    def short(self) -> str:
        """The GPU's name, or the CPU's if there is none, for the file name."""
        if self.gpus:
            return f"{len(self.gpus)}x-{self.gpus[0]}"
        return f"{self.cores}-cores-{self.cpu}"


@dataclass(frozen=True)
class Section:
    """One table of figures, and the ratios between them."""

    title: str
    text: str
    """What was measured and how."""
    figures: tuple[Figure, ...]
    ratios: tuple[Ratio, ...] = ()
    measured: bool = True
    """False if every figure was calculated from other sections."""

    @property
    def rows(self) -> Iterator[tuple[str, str, str, str]]:
        """The figures and then the ratios, as text."""
        for figure in (*self.figures, *(ratio.figure for ratio in self.ratios)):
            if self.measured:
                yield figure.name, figure.unit, str(figure), str(len(figure.samples))
            else:
                yield figure.name, figure.unit, format_number(figure.median), "calculated"

    @property
    def repeats(self) -> str:
        """A sentence that says how often the figures were measured."""
        if not self.measured:
            return "Calculated from other sections."
        counts = sorted({len(figure.samples) for figure in self.figures})
        times = (("once", "twice")[count - 1] if count < 3 else f"{count} times" for count in counts)
        return f"Measured {' or '.join(times)}."


@dataclass
class Record:
    """The results of one run of the benchmark."""

    vae: str
    hardware: Hardware = field(default_factory=Hardware.here)
    settings: Mapping[str, object] = field(default_factory=dict)
    sections: list[Section] = field(default_factory=list)
    day: date = field(default_factory=lambda: datetime.now(UTC).date())

    @property
    def file_name(self) -> str:
        """``vae_hardware_date.md``, in lower case; hyphens replace all characters except letters, digits and dots."""
        return f"{_slug(self.vae)}_{_slug(self.hardware.short)}_{self.day.isoformat()}.md"

    def write(self, folder: Path) -> Path:
        """Write the Markdown file into ``folder``; replaces one of the same VAE, hardware and day."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.file_name
        path.write_text(self.markdown())
        return path

    def markdown(self) -> str:
        """Return the record as a Markdown document."""
        parts = [f"# Benchmark of {self.vae}, {self.day.isoformat()}", _markdown_table(("", ""), self._about()), _RULE]
        for section in self.sections:
            parts += [f"## {section.title}", f"{section.text} {section.repeats}", _markdown_table(_HEAD, section.rows)]
        return "\n\n".join(parts) + "\n"

    def _about(self) -> Iterator[tuple[str, ...]]:
        yield "VAE", self.vae
        yield "CPU", f"{self.hardware.cpu}, {self.hardware.cores} cores, {self.hardware.memory_gb:.0f} GB"
        yield "GPU", ", ".join(self.hardware.gpus) or "none"
        yield "Python", platform.python_version()
        yield from ((package, version(package)) for package in _PACKAGES)
        yield from ((name, str(value)) for name, value in self.settings.items())


def _markdown_table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _cpu_model() -> str:
    """Return the kernel's name for the CPU; that of `platform` is often only the architecture."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
