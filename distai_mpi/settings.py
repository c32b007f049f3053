"""Settings as frozen dataclasses: keywords, flags, keys of TOML files and checks all come from their fields.

    @settings
    class SGD:
        lr: float = setting(kind="float", default=0.1, above=0)

    SGD(lr=-1)      # ConfigError: lr of SGD must be a number above 0, got -1
    SGD(rate=0.1)   # ConfigError: SGD has no parameter rate; its parameters are lr

Where the command reads flags, within `by_flags`, the same error says ``--lr``.  This module imports nothing that takes
time, so that ``--help`` is quick.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import MISSING, dataclass
from difflib import get_close_matches
from functools import wraps
from inspect import signature
from typing import Any, NoReturn, TypeVar, dataclass_transform

from .errors import ConfigError

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
_flags: ContextVar[bool] = ContextVar("distai_mpi_flags", default=False)  # whether the user gave flags


@dataclass(frozen=True)
class Setting:
    """What may be said of one setting.

    Attributes:
        kind: ``int``, ``float``, ``bool``, ``str``, or what else the command makes of a text; "": anything.
        default: of the flag; None where it depends on others, and ``help`` tells.
        low, high: least and largest value.
        above, below: bounds that a value must not reach.
        choices: the values that there are, in words.
        help: a sentence for ``--help``.
        flag: of the command, as click takes it; None: there is none.
        metavar: what ``--help`` shows in place of the value.
        fixed: whether a run that goes on from a checkpoint must have the same value; what of it, where that is a type.
        shown: whether ``--help`` shows the flag; else ``--help-all`` alone.
    """

    kind: str = ""
    default: Any = None
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    help: str = ""
    flag: str | None = None
    metavar: str | None = None
    fixed: bool | type = False
    shown: bool = True

    def wanted(self) -> str:
        """What a value must be, in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        noun = {"int": "a whole number", "float": "a number", "bool": "True or False", "str": "a text"}
        bounds = (("from", self.low), ("above", self.above), ("to", self.high), ("below", self.below))
        words = [f"{word} {bound:g}" for word, bound in bounds if bound is not None]
        up = ["up"] if self.low is not None and len(words) == 1 else []
        return " ".join([noun.get(self.kind, self.kind), *words, *up])

    def admits(self, value: Any) -> bool:
        """Whether ``value`` is of the kind and within the bounds."""
        if self.choices:
            return isinstance(value, str) and value in self.choices
        if self.kind in ("bool", "str"):
            return isinstance(value, bool if self.kind == "bool" else str)
        if self.kind not in ("int", "float"):
            return True
        if isinstance(value, bool) or not isinstance(value, numbers.Integral if self.kind == "int" else numbers.Real):
            return False
        number: Any = value
        if self.kind == "float" and not math.isfinite(number):
            return False
        inside = (self.above is None or number > self.above) and (self.below is None or number < self.below)
        return inside and (self.low is None or number >= self.low) and (self.high is None or number <= self.high)

    def check(self, name: str, value: Any) -> None:
        """Raise `ConfigError` unless ``value`` is one for the parameter ``name``."""
        if not self.admits(value):
            flag = None if self.flag is None else self.flag.split("/")[0]
            raise ConfigError(f"{called(name, flag)} must be {self.wanted()}, got {value!r}")


def setting(
    about: Setting | None = None, *, default: Any = MISSING, factory: Callable[[], Any] | None = None, **more: Any
) -> Any:
    """A field of a class of `settings`, by keyword alone if ``kw_only``; it may be what ``about`` or ``more`` say."""
    keywords: dict[str, Any] = {name: more.pop(name) for name in ("kw_only", "repr", "compare") if name in more}
    keywords |= {"default": default} if factory is None else {"default_factory": factory}
    return dataclasses.field(metadata={"setting": about or Setting(**more)}, **keywords)


@dataclass_transform(frozen_default=True, field_specifiers=(setting, dataclasses.field))
def settings(cls: type[T]) -> type[T]:
    """A frozen dataclass that checks its fields, and names the nearest parameter where a keyword is unknown.

    A method ``check(self)`` of the class looks at what fields must be together; it raises `ConfigError`.
    """
    own = cls.__dict__.get("__post_init__")

    def post_init(self: Any) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if "setting" in field.metadata and not (value is None and "None" in str(field.type)):
                field.metadata["setting"].check(f"{field.name} of {cls.__name__}", value)
        if own is not None:
            own(self)
        elif hasattr(self, "check"):
            self.check()

    cls.__post_init__ = post_init  # type: ignore[attr-defined]
    made = dataclass(frozen=True)(cls)
    plain = made.__init__
    names = [field.name for field in dataclasses.fields(made) if field.init]  # type: ignore[arg-type]

    def init(self: Any, *values: Any, **keywords: Any) -> None:
        for name in keywords:
            if name not in names:
                raise ConfigError(unknown(name, names, f"{made.__name__} has no parameter"))
        plain(self, *values, **keywords)

    init.__wrapped__ = plain  # type: ignore[attr-defined]  # for inspect.signature
    init.__doc__ = plain.__doc__
    made.__init__ = init  # type: ignore[method-assign]
    return made


def fixed(made: Any) -> dict[str, Any]:
    """What a run that goes on from a checkpoint must have alike: fixed settings of ``made``, and of settings within.

    Methods stand for their names.
    """
    found: dict[str, Any] = {}
    for field in dataclasses.fields(made):
        about, value = field.metadata.get("setting"), getattr(made, field.name)
        if about is None:
            continue
        if about.fixed:
            found[field.name] = getattr(value, "name", value) if about.fixed is True else about.fixed(value)
        if dataclasses.is_dataclass(value):
            found |= fixed(value)
    return found


def unknown(name: str, known: Iterable[str], what: str, moved: dict[str, str] | None = None) -> str:
    """The sentence that ``what`` (as in "fit has no parameter") gives no ``name``, with the nearest of ``known``.

    ``moved`` tells where names of earlier versions went.
    """
    if moved and name in moved:
        return f"{what} {name}: {moved[name]}"
    known = list(known)
    near = get_close_matches(name, known, n=1)
    return f"{what} {name}; " + (f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}")


def keywords(moved: dict[str, str]) -> Callable[[F], F]:
    """Let a function refuse keywords that it does not have by `unknown`, with where those ``moved`` went."""

    def decorate(function: F) -> F:
        known = [name for name, each in signature(function).parameters.items() if each.kind is each.KEYWORD_ONLY]
        taken = set(signature(function).parameters)

        @wraps(function)
        def checked(*values: Any, **named: Any) -> Any:
            for name in named:
                if name not in taken:
                    raise ConfigError(unknown(name, known, f"{function.__name__} has no parameter", moved))
            return function(*values, **named)

        return checked  # type: ignore[return-value]

    return decorate


def exclude(one: str, other: str, why: str) -> NoReturn:
    """Raise `ConfigError`: the parameters ``one`` and ``other`` are both given, and exclude each other."""
    raise ConfigError(f"{called(one)} and {called(other)} exclude each other: {why}; give one")


@contextmanager
def by_flags() -> Iterator[None]:
    """While the block runs, errors name flags of the command in place of parameters."""
    token = _flags.set(True)
    try:
        yield
    finally:
        _flags.reset(token)


def called(name: str, flag: str | None = None) -> str:
    """The parameter ``name`` as who gave it calls it: by its name in a program, as a flag of the command."""
    return (flag or f"--{name.replace('_', '-')}") if _flags.get() else name


def worded(program: str, command: str) -> str:
    """``program`` for who calls functions, ``command`` for who gives flags."""
    return command if _flags.get() else program
