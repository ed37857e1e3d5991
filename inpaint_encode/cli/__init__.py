"""The command line: `commands` has every command, `main` runs one."""

from .commands import app
from .main import INTERRUPTED, main, stop_on_signals

__all__ = ["INTERRUPTED", "app", "main", "stop_on_signals"]
