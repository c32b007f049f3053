"""Settings of a run as a TOML file: values of flags by their names, without the dashes in front."""

from __future__ import annotations

import csv
import io
import math
import re
import tomllib
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import click
from click.core import ParameterSource

from ..errors import ConfigError


def read_config(ctx: click.Context, param: click.Parameter, path: str | None) -> None:
    """Make the values in the file ``path`` the defaults of the command's flags.

    Raises:
        ConfigError: the file cannot be read, or a line of it names no flag, names one again in another
            spelling, or gives a value that the flag refuses.
    """
    if path is None:
        return
    text = _read(path)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is no TOML file: {error}") from None
    flags = {flag_name(p): p for p in ctx.command.params if isinstance(p, click.Option) and p is not param}
    defaults: dict[str, Any] = {}
    spelled: dict[str, str] = {}
    for key, value in values.items():
        name = key.replace("_", "-")
        where = f"{path}, line {_line_of(text, key)}: {key}"
        if name not in flags:
            near = get_close_matches(name, flags, n=1)
            raise ConfigError(
                f"{where} is no flag of '{ctx.command_path}'{f'; did you mean {near[0]}?' if near else ''}"
            )
        if name in spelled:
            raise ConfigError(
                f"{where} says again what line {_line_of(text, spelled[name])} says: {spelled[name]} is the same flag;"
                " keep one"
            )
        spelled[name] = key
        defaults[flags[name].name or ""] = _checked(flags[name], value, ctx, where)
    ctx.default_map = {**(ctx.default_map or {}), **defaults}


def flags_win(ctx: click.Context, settings: dict[str, Any], pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """``settings`` without those of the file that exclude what the command line says; ``pairs`` exclude each other."""
    given = {name for name in settings if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    beaten = {a for pair in pairs for a, b in (pair, pair[::-1]) if b in given and a not in given}
    unset = {name: False if isinstance(settings[name], bool) else None for name in beaten}
    return settings | unset


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except OSError as error:
        raise ConfigError(f"--config {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--config {path}: is no text in UTF-8; give a TOML file") from None


def flag_name(flag: click.Option) -> str:
    """The flag's name as it is written in a file: the longest, without the dashes in front."""
    return max(flag.opts, key=len).lstrip("-")


def _line_of(text: str, key: str) -> int:
    """Line of ``text``, counted from 1, that sets ``key`` (or opens the table of that name)."""
    pattern = re.compile(rf"""\s*\[*\s*["']?{re.escape(key)}["']?\s*[\].=]""")
    return next((number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)), 1)


def _checked(flag: click.Option, value: Any, ctx: click.Context, where: str) -> Any:
    """``value``, if the flag takes it; lists become the flag's own form, with commas."""
    if isinstance(value, list):
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow(value)  # an item that holds a comma in quotes
        value = text.getvalue()
    switch = flag.is_flag or isinstance(flag.type, click.types.BoolParamType)
    if isinstance(value, dict):
        raise ConfigError(f"{where}: tables are not used here; write the flags one below the other")
    kind, kinds = _kind(flag)
    if switch != isinstance(value, bool) or (kinds and not isinstance(value, kinds)):
        shown = str(value).lower() if isinstance(value, bool) else repr(value)
        raise ConfigError(f"{where}: {shown} is not {kind}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: {value} is no finite number")
    try:
        flag.type_cast_value(ctx, value if switch else str(value))
    except click.BadParameter as error:
        raise ConfigError(f"{where}: {error.message.rstrip('.')}") from None
    return value


def _kind(flag: click.Option) -> tuple[str, tuple[type, ...]]:
    """What a flag takes, in words, and the types that it takes alone; none where text may stand for it."""
    if flag.is_flag or isinstance(flag.type, click.types.BoolParamType):
        return "true or false", (bool,)
    if isinstance(flag.type, click.types.IntParamType):
        return "a whole number", (int,)
    if isinstance(flag.type, click.types.FloatParamType):
        return "a number", (int, float)
    return "what this flag takes: give a text or a number", ()


def write_config(settings: dict[str, Any], command: click.Command, comment: str) -> str:
    """A TOML text of ``settings``, by parameter name, that `read_config` takes; those that are None are left out."""
    import tomli_w

    values = {}
    for parameter in command.params:
        value = settings.get(parameter.name or "")
        if isinstance(parameter, click.Option) and value is not None:
            values[flag_name(parameter)] = list(value) if isinstance(value, tuple) else value
    return f"# {comment}\n" + tomli_w.dumps(values)
