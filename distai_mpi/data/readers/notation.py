"""How users write crosses of columns and lengths of n-grams."""

from __future__ import annotations

import re

from ...errors import ConfigError


def crosses(spec: str | None) -> list[tuple[str, ...]]:
    """The columns of each cross: ``A:B,A:C`` are (A, B) and (A, C).

    Raises:
        ConfigError: it is not written so.
    """
    found = [tuple(part.strip().split(":")) for part in spec.split(",")] if spec is not None else []
    for names in found:
        if len(names) < 2 or not all(names) or len(set(names)) < len(names):
            raise ConfigError(f"--cross {spec}: give two columns or more with colons between them, A:B, or A:B,A:C")
    return found


def ngram_range(spec: str) -> tuple[int, int]:
    """Least and greatest n of ``1`` or ``1,2``.

    Raises:
        ConfigError: it is not written so.
    """
    match = re.fullmatch(r"([1-9]\d?)(?:,([1-9]\d?))?", str(spec))
    if match is None or int(match[2] or match[1]) < int(match[1]):
        raise ConfigError(f"--ngrams {spec}: give the number of words, or the least and the greatest, as in 1,2")
    return int(match[1]), int(match[2] or match[1])
