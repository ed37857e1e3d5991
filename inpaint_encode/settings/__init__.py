"""Settings of every command: each option, its default and its checks, validated before Ray starts.

There is one class per section of ``--help``; `commands` combines them into one class per command. A field, its option
and its key in a TOML file have the same name: ``grow_mask_by`` is ``--grow-mask-by``.
"""

from .base import format_value, unit
from .commands import EncodeJob, ExportOptions, LatentDecoding, PlanOptions, ReportOptions, ShowOptions, VerifyOptions
from .job import Chunks, Output, RowSettings, RunOptions, VaeSource, Workers, label_selector
from .source import Decoding, Limits, Source, SourceAccess, SourceReading

__all__ = [
    "Chunks",
    "Decoding",
    "EncodeJob",
    "ExportOptions",
    "LatentDecoding",
    "Limits",
    "Output",
    "PlanOptions",
    "ReportOptions",
    "RowSettings",
    "RunOptions",
    "ShowOptions",
    "Source",
    "SourceAccess",
    "SourceReading",
    "VaeSource",
    "VerifyOptions",
    "Workers",
    "format_value",
    "label_selector",
    "unit",
]
