"""The command line: `main` runs a command, `commands` defines all of them."""

from .main import INTERRUPTED, main, stop_on_signals

__all__ = ["INTERRUPTED", "main", "stop_on_signals"]
