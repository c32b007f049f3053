"""Runs programs in turn on one machine, so that drifts of its speed do not bias their rates or times."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import DistaiError
from .machine import user_environment

RATE_NAMES = ("samples_per_second", "samples_per_s", "bytes_per_second")  # under which a program may print its rate
SECONDS_NAMES = ("seconds", "s")  # and how long it took, where that is compared
LAUNCHER_VARIABLES = ("OMPI_COMM_", "PMIX_", "PMI_", "PRTE_", "HYDRA_", "MPI_LOCAL")
FLOPS_DIMENSION = 2048  # of the matrices of `sgemm_peak`: large enough for full speed, small enough for 0.2 s


@dataclass
class Contender:
    """A command, the rates it reached in samples, bytes or runs per second, and all it printed with them; one a run."""

    name: str
    command: Sequence[str] | str
    rates: list[float] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median rate, per second."""
        return statistics.median(self.rates)

    def ratio(self, other: Contender) -> float:
        """Median over the runs of this rate to the other's in the same turn."""
        return statistics.median(a / b for a, b in zip(self.rates, other.rates, strict=True))


def run_in_turn(contenders: Sequence[Contender], repeats: int, timeout: float, by_seconds: bool = False) -> None:
    """Run every contender once in each of ``repeats`` turns and keep its rate; ``by_seconds``: runs per second."""
    for _ in range(repeats):
        for contender in contenders:
            rate, result = run(contender.command, timeout, by_seconds)
            contender.rates.append(rate)
            contender.results.append(result)


def run(command: Sequence[str] | str, timeout: float, by_seconds: bool = False) -> tuple[float, dict[str, Any]]:
    """Run ``command`` (a string goes through the shell); return the rate that it prints, and the object that holds it.

    The rate is the value of one of `RATE_NAMES` in the last JSON object of
    its standard output or, with ``by_seconds``, one over that of `SECONDS_NAMES`.

    Raises:
        DistaiError: it fails, takes longer than ``timeout`` seconds, or prints no rate.
    """
    shown = command if isinstance(command, str) else " ".join(command)
    environment = {k: v for k, v in user_environment().items() if not k.startswith(LAUNCHER_VARIABLES)}
    try:
        process = subprocess.Popen(
            command,
            shell=isinstance(command, str),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    except OSError as error:
        raise DistaiError(f"{shown}: cannot be started ({error.strerror})") from None
    try:
        output, errors = process.communicate(timeout=timeout)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)  # a shell's children and a launcher's ranks with it
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise DistaiError(f"{shown}: not done after {timeout:g} s; give it more with --timeout") from None
        raise
    if process.returncode != 0:
        raise DistaiError(f"{shown}: ended with status {process.returncode}: {shorten(errors)}")
    names = SECONDS_NAMES if by_seconds else RATE_NAMES
    found = find_number(output, names)
    if found is None:
        raise DistaiError(f"{shown}: printed no JSON object with {' or '.join(names)}")
    return (1.0 / found[0] if by_seconds else found[0]), found[1]


def shorten(text: str, most: int = 1500) -> str:
    """The beginning and the end of a long message, ``most`` characters together."""
    text = text.strip()
    return text if len(text) <= most else f"{text[: most // 2]} [...] {text[-most // 2 :]}"


def find_number(output: str, names: Sequence[str] = RATE_NAMES) -> tuple[float, dict[str, Any]] | None:
    """The number called by one of ``names`` in the last JSON object of ``output`` that has one, and the object.

    A line may have words before the object.
    """
    for line in reversed(output.splitlines()):
        try:
            fields: Any = json.loads(line[line.index("{") :])
        except ValueError:
            continue
        for name in names:
            rate = fields.get(name) if isinstance(fields, dict) else None
            if isinstance(rate, int | float) and rate > 0:
                return float(rate), fields
    return None


def sgemm_peak(threads: int, repeats: int = 5, n: int = FLOPS_DIMENSION) -> float:
    """FLOP/s of a product of float32 matrices, n × n, on ``threads`` BLAS threads: the best of ``repeats``."""
    import numpy as np
    from threadpoolctl import threadpool_limits

    a = np.random.default_rng(0).random((n, n), np.float32)
    b, c = a.T.copy(), np.empty_like(a)
    best = float("inf")
    with threadpool_limits(threads, user_api="blas"):
        for _ in range(repeats + 1):
            began = time.perf_counter()
            np.dot(a, b, out=c)
            best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best
