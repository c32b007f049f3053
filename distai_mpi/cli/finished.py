"""Whether the run that the flags describe was completed before, in the folder that they name."""

from __future__ import annotations

import glob
import json
import os
import tomllib
from collections.abc import Iterator, Sequence
from typing import Any

# What does not change the result: where it goes, what is printed, and how often a run is saved.
INDIFFERENT = ("out", "trace", "quiet", "verbose", "json", "checkpoint-every", "keep-checkpoints", "watch", "spare")


def finished(settings: dict[str, Any], again: Sequence[str | None]) -> tuple[dict[str, Any] | None, str]:
    """The fields of result.json if the run was completed, and what is to be said where another one was; local.

    Args:
        settings: of the run, with ``out``, and ``spare`` or None.
        again: texts of settings.toml (see `build.repeat`), any of which stands for this run.

    A run is the same where all settings in settings.toml are that bear on the result, and no file of its data has
    changed since training began.  Otherwise the fields are None: the run goes on from its checkpoints, if any.
    """
    told = ""
    for folder in filter(None, (settings["out"], settings["spare"])):
        fields, why = _in(folder, settings, again)
        if fields is not None:
            return fields, ""
        told = told or why
    return None, told


def _in(folder: str, settings: dict[str, Any], again: Sequence[str | None]) -> tuple[dict[str, Any] | None, str]:
    """`finished` by what lies in one folder."""
    # these names belong to train.report, whose import takes a second
    result, model, kept = (os.path.join(folder, name) for name in ("result.json", "model.npz", "settings.toml"))
    try:
        with open(result, encoding="utf-8") as file:
            fields = json.load(file)
        with open(kept, "rb") as binary:
            before = tomllib.load(binary)
        since = os.path.getmtime(kept)
    except (OSError, ValueError):  # of TOML and JSON too
        return None, ""
    if not isinstance(fields, dict) or fields.get("status") != "completed" or not os.path.exists(model):
        return None, ""
    changes = [_changes(before, tomllib.loads(text or "")) for text in again]
    if all(changes):
        return None, f"{result} is of a run with other settings ({min(changes, key=len)}), and does not count"
    newer = next((path for path in _files(settings) if _changed(path) > since), None)
    if newer is not None:
        return None, f"{newer} has changed since {result} was begun, which does not count"
    return fields, ""


def _changed(path: str) -> float:
    """When a file was changed last; never, where there is none: a link in a folder may lead nowhere."""
    try:
        return os.path.getmtime(path)
    except OSError:
        return 0.0


def _changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    names = [name for name in {**before, **now} if name not in INDIFFERENT and before.get(name) != now.get(name)]
    return ", ".join(f"{name} {_shown(before, name)}, here {_shown(now, name)}" for name in names)


def _shown(values: dict[str, Any], name: str) -> Any:
    return values.get(name, "not given")


def _files(settings: dict[str, Any]) -> Iterator[str]:
    """Files and folders of the data, as far as their names are those of files."""
    for given in (settings["data"], settings["test_data"], settings["valid"]):
        parts = [given] if given is None or os.path.exists(given) else given.split(",")
        for part in filter(None, parts):
            for path in [part] if os.path.exists(part) else glob.glob(part):
                yield path
                for folder, _, names in os.walk(path):
                    yield from (os.path.join(folder, name) for name in names)
