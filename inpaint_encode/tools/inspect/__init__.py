"""The commands ``info``, ``report`` (with its HTML page) and ``show``."""
