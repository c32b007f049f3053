"""Errors of the data layer name flags of the command; in a program ``--missing drop`` is ``missing='drop'``."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from ..errors import DistaiError
from ..settings import worded

P = ParamSpec("P")
T = TypeVar("T")

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


def worded_errors(function: Callable[P, T]) -> Callable[P, T]:
    """``function``, whose errors name parameters, or flags where the command calls it."""

    @wraps(function)
    def call(*args: P.args, **keywords: P.kwargs) -> T:
        try:
            return function(*args, **keywords)
        except DistaiError as error:
            text = worded(for_programs(str(error)), str(error))
            if text == str(error):
                raise
            raise type(error)(text) from error.__cause__

    return call
