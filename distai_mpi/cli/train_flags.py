"""The flags of ``train`` in other commands, that measure or plan what it would do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import ConfigError
from .flags import flag_of
from .settings import EITHER, check_flags


def settings_of(flags: Sequence[str], refused: Sequence[str] = (), purpose: str = "") -> dict[str, Any]:
    """The settings that ``flags`` give to `train`; the same errors as there.

    Those of the names ``refused`` have no place in ``purpose``: they are refused among the flags, and None otherwise.
    """
    from click.core import ParameterSource

    from .config import flags_win
    from .train import command as train

    context = train.make_context("distai-mpi train", list(flags))
    settings = flags_win(context, context.params, EITHER)
    for name in refused:
        if settings.get(name) and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise ConfigError(f"{flag_of(name)} does not belong to {purpose}; leave it out")
        settings[name] = None  # the file of --config may hold it
    check_flags(settings)
    return settings
