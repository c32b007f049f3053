"""Settings as frozen dataclasses: keywords, flags, keys of TOML files and checks all come from their fields.

    @settings
    class SGD:
        lr: float = setting(0.1, above=0, help="Learning rate.")

    SGD(lr=-1)      # ConfigError: lr must be a number above 0, got -1
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
from typing import Any, TypeVar, dataclass_transform

from .errors import ConfigError

T = TypeVar("T")
_flags: ContextVar[bool] = ContextVar("distai_mpi_flags", default=False)  # whether the user gave flags


@dataclass(frozen=True)
class Setting:
    """What is known of one field.

    Attributes:
        low, high: least and largest value.
        above, below: bounds that a value must not reach.
        choices: the values that there are, in words.
        help: a sentence for ``--help``.
        flag: of the command; default: the field's name with dashes.
        topic: the heading under which ``--help`` shows the flag.
        fixed: whether a run that goes on from a checkpoint must have the same value.
        shown: whether ``--help`` shows the flag; else ``--help-all`` alone.
    """

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    help: str = ""
    flag: str | None = None
    topic: str = ""
    fixed: bool = False
    shown: bool = True

    def wanted(self, kind: str) -> str:
        """What a value of the type ``kind`` must be, in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        noun = {"int": "a whole number", "float": "a number", "bool": "True or False", "str": "a text"}.get(kind, kind)
        bounds = ((self.low, "from {:g} up"), (self.above, "above {:g}"))
        words = [text.format(bound) for bound, text in bounds if bound is not None]
        bounds = ((self.high, "up to {:g}"), (self.below, "below {:g}"))
        words += [text.format(bound) for bound, text in bounds if bound is not None]
        return " ".join([noun, " and ".join(words)]).strip()

    def admits(self, value: Any, kind: str) -> bool:
        """Whether ``value`` is of the type ``kind`` and within the bounds."""
        if self.choices:
            return isinstance(value, str) and value in self.choices
        if kind == "bool":
            return isinstance(value, bool)
        if kind == "str":
            return isinstance(value, str)
        if kind not in ("int", "float"):
            return True
        if isinstance(value, bool) or not isinstance(value, numbers.Integral if kind == "int" else numbers.Real):
            return False
        value = float(value)
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        inside = (self.above is None or value > self.above) and (self.below is None or value < self.below)
        return low <= value <= high and inside and math.isfinite(value)


def setting(default: Any = MISSING, *, factory: Callable[[], Any] | None = None, **about: Any) -> Any:
    """A field of a class of `settings`; ``about`` it: see `Setting`.  It is given by keyword alone if ``kw_only``."""
    keywords: dict[str, Any] = {name: about.pop(name) for name in ("kw_only", "repr", "compare") if name in about}
    keywords |= {"default": default} if factory is None else {"default_factory": factory}
    return dataclasses.field(metadata={"setting": Setting(**about)}, **keywords)


@dataclass_transform(frozen_default=True, field_specifiers=(setting, dataclasses.field))
def settings(cls: type[T]) -> type[T]:
    """A frozen dataclass that checks its fields, and names the nearest parameter where a keyword is unknown.

    A method ``check(self)`` of the class looks at what fields must be together; it raises `ConfigError`.
    """
    own = cls.__dict__.get("__post_init__")

    def post_init(self: Any) -> None:
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))
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


def _check(field: dataclasses.Field[Any], value: Any) -> None:
    about: Setting | None = field.metadata.get("setting")
    if about is None:
        return
    kind, _, none = (field.type if isinstance(field.type, str) else field.type.__name__).partition(" | ")
    if none == "None":
        if value is None:
            return
    elif none:
        kind = ""
    if not about.admits(value, kind):
        raise ConfigError(f"{called(field.name, about.flag)} must be {about.wanted(kind)}, got {value!r}")


def unknown(name: str, known: Iterable[str], what: str, moved: dict[str, str] | None = None) -> str:
    """The sentence that ``what`` (as in "fit has no parameter") gives no ``name``, with the nearest of ``known``.

    ``moved`` tells where names of earlier versions went.
    """
    if moved and name in moved:
        return f"{what} {name}: {moved[name]}"
    known = list(known)
    near = get_close_matches(name, known, n=1)
    return f"{what} {name}; " + (f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}")


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
