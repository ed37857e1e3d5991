"""The dated record of a benchmark: the same tables as a Markdown file and in the terminal."""

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
from rich.console import Console
from rich.table import Table

from .figures import Figure, Ratio, number

__all__ = ["Hardware", "Record", "Section"]

_PACKAGES = ("inpaint-encode", "torch", "ray", "pyarrow", "pillow", "diffusers", "obstore", "s3fs", "numpy")
_HEAD = ("what", "unit", "median (least..greatest)", "samples")
_RULE = (
    "All ratios are between figures of this one run, measured in turn; nothing here is held against an older record, "
    "since the machine and its neighbours were others then."
)


@dataclass(frozen=True)
class Hardware:
    """What the benchmark ran on."""

    cpu: str
    cores: int
    """Those that this process may use."""
    memory_gb: float
    gpus: tuple[str, ...]

    @classmethod
    def here(cls) -> Hardware:
        """Ask this machine."""
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return cls(
            cpu=_cpu_model(),
            cores=len(os.sched_getaffinity(0)),
            memory_gb=psutil.virtual_memory().total / 1e9,
            gpus=tuple(torch.cuda.get_device_name(index) for index in range(count)),
        )

    @property
    def short(self) -> str:
        """The GPU's name, or the CPU's where there is none, as it goes into a file name."""
        if self.gpus:
            return f"{len(self.gpus)}x-{self.gpus[0]}"
        return f"{self.cores}-cores-{self.cpu}"


@dataclass(frozen=True)
class Section:
    """One table of figures, and the ratios between them."""

    title: str
    text: str
    """What was measured and how, in sentences."""
    figures: tuple[Figure, ...]
    ratios: tuple[Ratio, ...] = ()
    measured: bool = True
    """False where every figure was worked out from those of other sections."""

    @property
    def rows(self) -> Iterator[tuple[str, str, str, str]]:
        """The figures and then the ratios, as text."""
        for figure in (*self.figures, *(ratio.figure for ratio in self.ratios)):
            if self.measured:
                yield figure.name, figure.unit, str(figure), str(len(figure.samples))
            else:
                yield figure.name, figure.unit, number(figure.median), "arithmetic"

    @property
    def repeats(self) -> str:
        """How often things were measured, as a sentence."""
        if not self.measured:
            return "Nothing of this was run."
        counts = sorted({len(figure.samples) for figure in self.figures})
        return f"Measured {' or '.join(_times(count) for count in counts)}."


@dataclass
class Record:
    """Everything that one run of the benchmark found."""

    vae: str
    hardware: Hardware = field(default_factory=Hardware.here)
    settings: Mapping[str, object] = field(default_factory=dict)
    sections: list[Section] = field(default_factory=list)
    day: date = field(default_factory=lambda: datetime.now(UTC).date())

    @property
    def file_name(self) -> str:
        """``vae_hardware_date.md``, in lower case, with hyphens for all that is no letter, digit or dot."""
        return f"{_slug(self.vae)}_{_slug(self.hardware.short)}_{self.day.isoformat()}.md"

    def write(self, folder: Path) -> Path:
        """Write the Markdown file into ``folder``; one of the same VAE, hardware and day is replaced."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.file_name
        path.write_text(self.markdown())
        return path

    def markdown(self) -> str:
        """Everything as one Markdown document."""
        parts = [f"# Benchmark of {self.vae}, {self.day.isoformat()}", _markdown_table(("", ""), self._about()), _RULE]
        for section in self.sections:
            parts += [f"## {section.title}", f"{section.text} {section.repeats}", _markdown_table(_HEAD, section.rows)]
        return "\n\n".join(parts) + "\n"

    def show(self, console: Console) -> None:
        """Print the tables of `markdown`."""
        console.print(_rich_table("", ("", ""), self._about()))
        for section in self.sections:
            console.print(f"\n{section.text} {section.repeats}", highlight=False, markup=False)
            console.print(_rich_table(section.title, _HEAD, section.rows))

    def _about(self) -> Iterator[tuple[str, ...]]:
        yield "VAE", self.vae
        yield "CPU", f"{self.hardware.cpu}, {self.hardware.cores} cores, {self.hardware.memory_gb:.0f} GB"
        yield "GPU", ", ".join(self.hardware.gpus) or "none"
        yield "Python", platform.python_version()
        yield from ((package, version(package)) for package in _PACKAGES)
        yield from ((name, str(value)) for name, value in self.settings.items())


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _markdown_table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _rich_table(title: str, head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Table:
    table = Table(title=title, show_header=any(head))
    for name in head:
        table.add_column(name)
    for row in rows:
        table.add_row(*row)
    return table


def _cpu_model() -> str:
    """The kernel's name for the CPU; Python's own is often no more than the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
