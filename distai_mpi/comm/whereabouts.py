"""What a thread of this process is doing, by a look at its stack: nothing is recorded while it runs."""

from __future__ import annotations

import os
import sys
import sysconfig
import traceback
from enum import IntEnum
from functools import lru_cache
from types import FrameType
from typing import NamedTuple

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
COMM = os.path.join(PACKAGE, "comm") + os.sep
LIBRARIES = tuple({os.path.realpath(path) + os.sep for path in sysconfig.get_paths().values()})


class Activity(IntEnum):
    """What a rank does, as far as others need to know it."""

    UNKNOWN = 0
    WAITING = 1  # it is in a communication call
    WORKING = 2  # it reads, computes or writes in code of this package
    COMPILING = 3
    USER = 4  # it is in code of the user's
    DEBUGGED = 5  # a person holds it in a debugger
    LEFT = 6  # it has ended, or is about to


class Whereabouts(NamedTuple):
    """What a thread does, and where: file, line and function of the innermost frame that tells."""

    activity: Activity
    location: str


class Kind(IntEnum):
    """Whose code a file holds."""

    LIBRARY = 0
    COMM = 1
    PACKAGE = 2
    COMPILER = 3
    DEBUGGER = 4
    USER = 5


@lru_cache(maxsize=4096)
def kind_of(file: str) -> Kind:
    """Whose code is in ``file``, a path as frames have it."""
    if os.path.basename(file) in ("bdb.py", "pdb.py"):
        return Kind.DEBUGGER
    if file.startswith(COMM):
        return Kind.COMM
    if file.startswith(PACKAGE):
        return Kind.PACKAGE
    if f"{os.sep}numba{os.sep}" in file or f"{os.sep}llvmlite{os.sep}" in file:
        return Kind.COMPILER
    if file.startswith("<frozen") or os.path.realpath(file).startswith(LIBRARIES):
        return Kind.LIBRARY
    return Kind.USER


def look_at(thread: int) -> Whereabouts:
    """What the thread with identity ``thread`` does now."""
    frame = sys._current_frames().get(thread)
    return Whereabouts(Activity.LEFT, "thread has ended") if frame is None else whereabouts(frame)


def whereabouts(frame: FrameType) -> Whereabouts:
    """What a thread does whose innermost frame is ``frame``.

    The innermost frame that belongs to somebody decides; libraries work for whoever has called them.
    """
    stack = []
    walker: FrameType | None = frame
    while walker is not None:
        stack.append((kind_of(walker.f_code.co_filename), walker))
        walker = walker.f_back
    if any(kind is Kind.DEBUGGER for kind, _ in stack):
        return Whereabouts(Activity.DEBUGGED, "debugger")
    owner, at = next(((kind, at) for kind, at in stack if kind is not Kind.LIBRARY), (Kind.USER, frame))
    if owner is Kind.PACKAGE and any(at.f_code.co_name == "within" and kind is Kind.COMM for kind, at in stack):
        owner, at = Kind.COMM, next(at for kind, at in stack if kind is Kind.COMM)  # a compiled loop of many steps
    if owner is Kind.COMM:
        return _in_call(at)
    activity = {Kind.COMPILER: Activity.COMPILING, Kind.PACKAGE: Activity.WORKING}.get(owner, Activity.USER)
    if owner is Kind.COMPILER:  # what is compiled is for the first frame outside
        at = next((at for kind, at in stack if kind in (Kind.COMM, Kind.PACKAGE, Kind.USER)), at)
    return Whereabouts(activity, _location(at))


def _in_call(at: FrameType) -> Whereabouts:
    """A rank in a communication call: the name of the outermost function of `comm`, and who has called that."""
    outer, caller = at, at.f_back
    while caller is not None and kind_of(caller.f_code.co_filename) in (Kind.COMM, Kind.LIBRARY):
        if kind_of(caller.f_code.co_filename) is Kind.COMM:
            outer = caller
        caller = caller.f_back
    name = outer.f_code.co_name
    activity = Activity.LEFT if at.f_code.co_name == "leave_together" else Activity.WAITING
    return Whereabouts(activity, name if caller is None else f"{name} called at {_location(caller)}")


def _location(frame: FrameType) -> str:
    file = frame.f_code.co_filename
    name = file[len(PACKAGE) :] if file.startswith(PACKAGE) else os.path.basename(file)
    return f"{name}:{frame.f_lineno} in {frame.f_code.co_name}"


def stacks() -> str:
    """The stacks of all threads of this process but the calling one, outermost frame first."""
    import threading

    names = {thread.ident: thread.name for thread in threading.enumerate()}
    text = []
    for ident, frame in sys._current_frames().items():
        if ident != threading.get_ident():
            text.append(f"thread {names.get(ident, ident)}:\n" + "".join(traceback.format_stack(frame)))
    return "".join(text)
