"""What earlier measurements have found, kept in a small file for each kind of machine and job.

The file lies in the user's cache folder: ``$DISTAI_CACHE``, or ``distai-mpi`` in ``$XDG_CACHE_HOME`` or ``~/.cache``;
``DISTAI_CACHE=0`` (or ``none``) does without.  Whatever is wrong with it, the worst that happens is that things are
measured again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from typing import Any

from ..perf.machine import affinity, cpu_model
from .collectives import ALGORITHMS, SHARING

Times = dict[str, float]  # seconds of an exchange, by algorithm

FORMAT = 1  # of the file, and of what its times mean
KEPT_SECONDS = 30 * 86400.0  # then a machine is looked at anew: its libraries and its network may have changed
BUDGET_SECONDS = 0.3  # that a process spends on measuring, for each kind of job
TRANSPORT = (  # variables that change how messages travel
    "OMPI_MCA_pml",
    "OMPI_MCA_btl",
    "OMPI_MCA_mtl",
    "OMPI_MCA_coll",
    "OMPI_MCA_btl_tcp_if_include",
    "UCX_TLS",
    "UCX_NET_DEVICES",
    "FI_PROVIDER",
    "I_MPI_FABRICS",
    "I_MPI_OFI_PROVIDER",
    "SLURM_CLUSTER_NAME",
    "SLURM_JOB_PARTITION",
)


def host(nodes: Iterable[int], chunk_bytes: int, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What the speed of an exchange depends on, as plain JSON values; by the machine of the rank that asks.

    Args:
        nodes: ranks of each node.
        chunk_bytes: most bytes of a message.
        env: where the settings of the transport stand; default: this process's environment.
    """
    from mpi4py import MPI

    env = os.environ if env is None else env
    name, version = MPI.get_vendor()
    return {
        "package": sys.modules[__name__.partition(".")[0]].__version__,
        "mpi": f"{name} {'.'.join(map(str, version))}",
        "cpu": cpu_model(),
        "cpus": [os.cpu_count(), len(affinity())],
        "nodes": list(nodes),
        "chunk_bytes": chunk_bytes,
        "transport": {name: env[name] for name in TRANSPORT if name in env},
    }


def folder(env: Mapping[str, str] | None = None) -> str | None:
    """Where findings are kept; None: nowhere."""
    env = os.environ if env is None else env
    named = env.get("DISTAI_CACHE", "")
    if named:
        return None if named.lower() in ("0", "none") else named
    base = env.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return os.path.join(base, "distai-mpi")
    home = env.get("HOME", "")
    return os.path.join(home, ".cache", "distai-mpi") if os.path.isabs(home) else None


class Findings:
    """The times known for one kind of job, by the name of what was measured.

    Args:
        host: the kind, see `host`.
        folder: where they are kept; None: in this process alone.

    Attributes:
        left: seconds that this process may still spend on measuring.
        path: the file; None without a folder.
    """

    def __init__(self, host: dict[str, Any], folder: str | None) -> None:
        self.host, self.left = host, BUDGET_SECONDS
        self.path = None if folder is None else os.path.join(folder, f"exchange-{digest(host)}.json")
        self._since, self._times = self._load()
        self._unsure: dict[str, Times] = {}
        self.loaded = frozenset(self._times)

    def get(self, name: str) -> Times | None:
        """The times found for ``name``; None where nothing is known."""
        return self._times.get(name, self._unsure.get(name))

    def sure(self, name: str) -> bool:
        """Whether the times of ``name`` are more than a first impression."""
        return name in self._times

    def add(self, name: str, times: Times, sure: bool = True) -> None:
        """Remember ``times``: in the file too, or as a first impression in this process alone."""
        if sure:
            self._times[name] = times
            self._save()
        else:
            self._unsure[name] = times

    def _load(self) -> tuple[float, dict[str, Times]]:
        """When the first times in the file were found, and those that make sense; none where the file does not."""
        now, stored = time.time(), None
        if self.path is not None:
            with contextlib.suppress(OSError, ValueError, RecursionError), open(self.path, encoding="utf-8") as file:
                stored = json.load(file)
        if not isinstance(stored, dict) or (stored.get("format"), stored.get("host")) != (FORMAT, self.host):
            return now, {}
        since, entries = stored.get("since"), stored.get("seconds")
        if not isinstance(since, int | float) or not 0 <= now - since < KEPT_SECONDS or not isinstance(entries, dict):
            return now, {}
        return since, {name: times for name, times in entries.items() if sane(times)}

    def _save(self) -> None:
        """Replace the file by one with what it had and what is known here; where that fails nothing happens."""
        if self.path is None:
            return
        self._since, others = self._load()  # another job may have added to it
        self._times = others | self._times
        found = {"format": FORMAT, "host": self.host, "since": self._since, "seconds": self._times}
        temporary = ""
        try:
            place = os.path.dirname(self.path)
            os.makedirs(place, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=place, suffix=".tmp", delete=False, encoding="utf-8") as file:
                temporary = file.name
                json.dump(found, file, indent=1)
            os.replace(temporary, self.path)
        except OSError:
            with contextlib.suppress(OSError):
                os.remove(temporary)


def digest(host: dict[str, Any]) -> str:
    """A short name for a kind of job."""
    return hashlib.sha256(json.dumps(host, sort_keys=True).encode()).hexdigest()[:12]


def sane(times: Any) -> bool:
    """Whether ``times`` can be seconds by algorithm, the library's own among them."""
    return (
        isinstance(times, dict)
        and "native" in times
        and set(times) <= {*ALGORITHMS, *SHARING}
        and all(type(seconds) is float and 1e-9 < seconds < 1e3 for seconds in times.values())
    )


_known: dict[str, Findings] = {}


def findings(host: dict[str, Any]) -> Findings:
    """This process's findings for a kind of job; the same object whenever it is asked for in the same folder."""
    place = folder()
    name = f"{digest(host)} {place}"
    if name not in _known:
        _known[name] = Findings(host, place)
    return _known[name]
