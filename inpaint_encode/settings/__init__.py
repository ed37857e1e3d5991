"""What a job is told: every option, its default and its consequence, validated before Ray starts.

One class for each question: where the pairs come from, how files are read, what a row is, who does the work, how the
run behaves; `commands` puts them together. The command line and TOML files spell the fields the same way:
``grow_mask_by`` is ``--grow-mask-by``.
"""

from .base import in_words, measured_in
from .commands import EncodeJob, PlanOptions, VerifyOptions
from .export import ExportOptions
from .files import Decoding, Limits
from .inspect import LatentDecoding, ReportOptions, ShowOptions
from .row import RowSettings, VaeSource
from .run import Batches, Chunks, Labels, Output, RunOptions, Workers, selector
from .source import Source, SourceAccess

__all__ = [
    "Batches",
    "Chunks",
    "Decoding",
    "EncodeJob",
    "ExportOptions",
    "Labels",
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
    "VaeSource",
    "VerifyOptions",
    "Workers",
    "in_words",
    "measured_in",
    "selector",
]
