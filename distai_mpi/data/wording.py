"""Errors and notes of the data layer name flags of the command; for programs ``--missing drop`` is missing='drop'."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import DistaiError
from ..settings import worded

WORDS = "read|scatter|global|local|mean|median|drop|refuse|seconds|calendar|csv|libsvm"
FLAG = re.compile(rf"(?<![\w-])--([a-z][a-z-]*)(?: ('[^']*'|(?:{WORDS})\b|[^\s,;:]+(?=: )))?")
NAMES = {
    "no-header": "header=False",
    "header": "header=True",
    "month-first": "day_first=False",
    "day-first": "day_first=True",
    "features": "variable",
    "test-data": "test",
}


def for_programs(text: str) -> str:
    """``text``, in which flags become parameters of `load_sets` with the value that follows, or with dots."""

    def parameter(flag: re.Match[str]) -> str:
        name = NAMES.get(flag[1], flag[1].replace("-", "_"))
        if "=" in name:
            return name + (f" {flag[2]}" if flag[2] else "")
        return f"{name}=..." if flag[2] is None else f"{name}={flag[2]}" if "'" in flag[2] else f"{name}={flag[2]!r}"

    text = text.replace("--model linear", "models.Linear")
    return FLAG.sub(parameter, text)


def for_caller(text: str) -> str:
    """``text`` with parameters, or with flags where the command calls."""
    return worded(for_programs(text), text)


@contextmanager
def worded_errors() -> Iterator[None]:
    """Errors of the block, or of the function it decorates, name parameters, or flags where the command calls it."""
    try:
        yield
    except DistaiError as error:
        text = for_caller(str(error))
        if text == str(error):
            raise
        raise type(error)(text) from error.__cause__
