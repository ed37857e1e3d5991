"""The commands besides ``encode``."""


def pluralize(count: int, noun: str) -> str:
    """Return ``1 row``, ``2 rows``, ..."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
