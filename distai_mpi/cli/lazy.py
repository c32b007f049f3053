"""Groups of commands whose modules are loaded when they are called for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import click


def lazy_group(package: str | None, commands: Mapping[str, str]) -> type[click.Group]:
    """A group of ``commands`` (name: help); ``command`` in ``package``.NAME is the command NAME."""

    class LazyGroup(click.Group):
        def list_commands(self, ctx: click.Context) -> list[str]:
            return list(commands)

        def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
            if name not in commands:
                return None
            return importlib.import_module(f"{package}.{name}").command

        def resolve_command(
            self, ctx: click.Context, args: list[str]
        ) -> tuple[str | None, click.Command | None, list[str]]:
            if args[0] not in commands and not args[0].startswith("-"):
                from difflib import get_close_matches

                near = get_close_matches(args[0], commands, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(commands)}"
                raise click.UsageError(f"no command '{args[0]}': {hint}")
            return super().resolve_command(ctx, args)

        def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
            with formatter.section("Commands"):
                formatter.write_dl(list(commands.items()))

    return LazyGroup
