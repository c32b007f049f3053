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
from dataclasses import asdict, dataclass
from typing import Any

from ..perf.machine import affinity, cpu_model
from .collectives import ALGORITHMS, SHARING

Times = dict[str, float]  # seconds of an exchange, by algorithm

FORMAT = 1  # of the file, and of what its times mean
KEPT_SECONDS = 30 * 86400.0  # then a machine is looked at anew: its network may have changed
UNSURE_SECONDS = 3600.0  # the same for what was measured on a busy machine
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


@dataclass(frozen=True)
class Finding:
    """What one measurement has found.

    Attributes:
        times: seconds by algorithm.
        sure: whether the machine was quiet, and had what the job needs.
        when: seconds of the clock.
    """

    times: Times
    sure: bool
    when: float

    @property
    def current(self) -> bool:
        """Whether it still counts."""
        return 0 <= time.time() - self.when < (KEPT_SECONDS if self.sure else UNSURE_SECONDS)

    @classmethod
    def read(cls, stored: Any) -> Finding | None:
        """From what the file says; None where that makes no sense, or no longer counts."""
        if not isinstance(stored, dict) or set(stored) != {"times", "sure", "when"}:
            return None
        found = cls(**stored)
        whole = sane(found.times) and type(found.sure) is bool and type(found.when) is float
        return found if whole and found.current else None


class Findings:
    """What is known of one kind of job, by the name of what was measured.

    Args:
        host: the kind, see `host`.
        folder: where it is kept; None: in this process alone.

    Attributes:
        left: seconds that this process may still spend on measuring.
        path: the file; None without a folder.
        earlier: names of what earlier runs have found.
    """

    def __init__(self, host: dict[str, Any], folder: str | None) -> None:
        self.host, self.left = host, BUDGET_SECONDS
        self.path = None if folder is None else os.path.join(folder, f"exchange-{digest(host)}.json")
        self._found = self._load()
        self.earlier = frozenset(self._found)

    def get(self, name: str) -> Finding | None:
        """What was found for ``name``; None where nothing is known."""
        return self._found.get(name)

    def add(self, name: str, times: Times, sure: bool) -> None:
        """Remember ``times``."""
        self._found[name] = Finding(times, sure, time.time())
        self._save()

    def forget(self) -> None:
        """Let all be measured anew, within a new budget; the file keeps what is not."""
        self._found, self.earlier, self.left = {}, frozenset(), BUDGET_SECONDS

    def _load(self) -> dict[str, Finding]:
        """What the file holds that makes sense."""
        stored = None
        if self.path is not None:
            with contextlib.suppress(OSError, ValueError, RecursionError), open(self.path, encoding="utf-8") as file:
                stored = json.load(file)
        if not isinstance(stored, dict) or (stored.get("format"), stored.get("host")) != (FORMAT, self.host):
            return {}
        entries = stored.get("found")
        read = {name: Finding.read(entry) for name, entry in entries.items()} if isinstance(entries, dict) else {}
        return {name: found for name, found in read.items() if found is not None}

    def _save(self) -> None:
        """Replace the file by one with what it has and what is known here; where that fails nothing happens."""
        if self.path is None:
            return
        found = self._load() | self._found  # another job may have added to it
        entries = {name: asdict(finding) for name, finding in sorted(found.items())}
        temporary = ""
        try:
            place = os.path.dirname(self.path)
            os.makedirs(place, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=place, suffix=".tmp", delete=False, encoding="utf-8") as file:
                temporary = file.name
                json.dump({"format": FORMAT, "host": self.host, "found": entries}, file, indent=1)
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
