"""The command line: `main` runs a command, `commands` defines all of them."""

from .main import main
from .signals import end_interrupted, stop_on_signals

__all__ = ["end_interrupted", "main", "stop_on_signals"]
