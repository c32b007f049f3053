"""The flags of commands, from the table of `options`: words become values here, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from ..options import COLUMNS, OPTIONS, TOPICS
from ..settings import Setting
from .config import read_config

__all__ = ["COLUMNS", "TopicCommand", "flag_of", "flags"]

EVERY = "distai_mpi.every"  # key of what a call of click keeps: whether all flags are to be shown


class Counts(click.ParamType):
    """Whole numbers such as ``128,64``."""

    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            counts = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            counts = (0,)
        if min(counts) < 1:
            self.fail(f"{value!r} is no list of numbers above 0; write for example 128,64", param, ctx)
        return counts


class Shards(click.ParamType):
    """``even``, ``speed``, or weights of the ranks such as ``3,1,1``."""

    name = "even|speed|W,W,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in ("even", "speed") or isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is none of even, speed, and weights of the ranks such as 3,1,1", param, ctx)


class Weights(click.ParamType):
    """``speed``, or weights such as ``3,1``."""

    name = "W,W,...|speed"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "speed" or isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is neither speed nor weights such as 3,1", param, ctx)


class TopicCommand(click.Command):
    """A command whose ``--help`` shows what most need, by topic, and whose ``--help-all`` shows all flags."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        def help_all(ctx: click.Context, param: click.Parameter, value: bool) -> None:
            if value:
                ctx.meta[EVERY] = True
                click.echo(ctx.get_help())
                ctx.exit()

        shown = click.Option(
            ["--help-all"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=help_all,
            help="Show all flags and exit.",
        )
        return [*super().get_params(ctx), shown]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the flags under the topics of `options`."""
        rest = {parameter.name: parameter for parameter in self.get_params(ctx)}
        for topic, options in {**TOPICS, "Help": {}}.items():
            names = list(options) or list(rest)
            own = [(name, rest.pop(name)) for name in names if name in rest]
            shown = [each for name, each in own if ctx.meta.get(EVERY) or name not in OPTIONS or OPTIONS[name].shown]
            records = [record for each in shown if (record := each.get_help_record(ctx)) is not None]
            if records:
                with formatter.section(topic):
                    formatter.write_dl(records)


def flags(*groups: Mapping[str, Setting]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that gives a command the flags of ``groups``, in this order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for name, setting in reversed([item for group in groups for item in group.items()]):
            command = _option(name, setting)(command)
        return command

    return decorate


def _option(name: str, setting: Setting) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The click option of one setting, handed to the command as ``name``."""
    assert setting.flag is not None
    long, _, short = setting.flag.partition(" ")
    words = [name, long, *([short] if short else [])]
    more: dict[str, Any] = {"help": setting.help, "default": setting.default, "metavar": setting.metavar}
    if name == "config":
        return click.option(*words, **more, is_eager=True, expose_value=False, callback=read_config)
    if setting.kind == "bool":
        paired = "/" in long
        return click.option(*words, **more, is_flag=True, show_default=paired and setting.default is not None)
    return click.option(*words, **more, type=_type(setting), show_default=setting.default is not None)


def _type(setting: Setting) -> Any:
    if setting.choices:
        return click.Choice(setting.choices)
    if setting.kind == "int":
        return click.IntRange(min=None if setting.low is None else int(setting.low))
    if setting.kind == "float":
        low = setting.low if setting.above is None else setting.above
        high = setting.high if setting.below is None else setting.below
        return click.FloatRange(low, high, min_open=setting.above is not None, max_open=setting.below is not None)
    return {"widths": Counts(), "shards": Shards(), "weights": Weights()}.get(setting.kind, click.STRING)


def flag_of(name: str) -> str:
    """The flag of a setting, as the user writes it."""
    flag = (OPTIONS[name].flag or "").split("/")[0]
    return flag.partition(" ")[2] or flag
