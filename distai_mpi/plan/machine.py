"""A machine as the planner sees it: its nodes, and how fast they compute, read memory and send messages.

It comes from a probe, or from a TOML file such as

    name = "cluster"
    [node]
    cores = 32
    memory = "256GiB"
    flops = 8e10                # of one core, by float32 matrix products
    bandwidth = 1.5e11          # bytes a second that all cores together read and write
    barrier = 2e-6              # seconds of a barrier of its ranks
    [network]
    latency = 2e-6              # seconds of a message between nodes
    bandwidth = 1.2e10          # bytes a second that a node sends, and as many that it receives meanwhile

of which a planner on one machine may lack the network.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import ConfigError
from ..settings import called, unknown

# Least and most of a figure: what lies outside is a slip of a unit, and no machine.
BOUNDS = {
    "cores": (1, 100_000),
    "memory": (64 << 20, 1 << 50),
    "flops": (1e7, 1e15),
    "bandwidth": (1e6, 1e14),
    "barrier": (1e-8, 1.0),
    "latency": (1e-8, 1.0),
}
NODE, NETWORK = ("cores", "memory", "flops", "bandwidth", "barrier"), ("latency", "bandwidth")  # tables of a file


@dataclass(frozen=True)
class Link:
    """How messages travel.

    Attributes:
        latency: seconds of a short message.
        bandwidth: bytes a second that a node sends, and as many that it receives meanwhile.
        shared: all nodes together have this bandwidth, as on the loopback interface of one machine.
    """

    latency: float
    bandwidth: float
    shared: bool = False


@dataclass(frozen=True)
class Machine:
    """Nodes that are alike, and the network between them.

    Attributes:
        cores: of a node, each for one rank.
        memory: bytes of a node.
        flops: of one core, by large float32 matrix products, in FLOP/s.
        bandwidth: bytes a second that all cores of a node read and write together.
        barrier: seconds of a barrier of a node's ranks.
        network: between nodes; None: unknown.
        emulated: nodes are parts of one machine, whose cores and memory they share.
    """

    name: str
    cores: int
    memory: int
    flops: float
    bandwidth: float
    barrier: float
    network: Link | None = None
    emulated: bool = False

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Machine:
        """The machine whose `asdict` these are."""
        network = values["network"]
        return cls(**{**values, "network": None if network is None else Link(**network)})

    def check(self, where: str) -> None:
        """Raise `ConfigError` at figures that no machine has; ``where`` names what they are from."""
        for name in NODE:
            _figure(name, getattr(self, name), f"{where}: node.{name}")
        for name in NETWORK if self.network is not None else ():
            _figure(name, getattr(self.network, name), f"{where}: network.{name}")

    def to_toml(self) -> str:
        """The text that `from_toml` reads."""
        import tomli_w

        values = asdict(self)
        node = {name: values[name] for name in NODE}
        text: dict[str, Any] = {"name": self.name, "emulated": self.emulated, "node": node}
        return tomli_w.dumps(text if self.network is None else text | {"network": values["network"]})


def read_machine(path: str) -> Machine:
    """The machine that the TOML file ``path`` describes.

    Raises:
        ConfigError: it cannot be read, or see `from_toml`.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        raise ConfigError(f"{called('machine')} {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{called('machine')} {path}: is no text in UTF-8; give a TOML file") from None
    return from_toml(text, f"{called('machine')} {path}")


def from_toml(text: str, where: str) -> Machine:
    """The machine that ``text`` describes; ``where`` names the text in errors.

    Raises:
        ConfigError: it is no TOML, lacks a figure, has one that is unknown, or one that no machine has.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: is no TOML file: {error}") from None
    _check_names(values, ("name", "emulated", "node", "network"), where)
    node = _table(values, "node", NODE, (), where)
    network = None
    if "network" in values:
        found = _table(values, "network", NETWORK, ("shared",), where)
        network = Link(found["latency"], found["bandwidth"], _truth(found, "shared", f"{where}: network.shared"))
    cores = node.pop("cores")
    if cores != int(cores):
        raise ConfigError(f"{where}: node.cores must be a whole number, got {cores:g}")
    name, emulated = str(values.get("name", "unnamed")), _truth(values, "emulated", f"{where}: emulated")
    return Machine(name, int(cores), int(node.pop("memory")), **node, network=network, emulated=emulated)


def _check_names(values: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    for name in values:
        if name not in known:
            raise ConfigError(unknown(name, known, f"{where}: a machine has no"))


def _table(
    values: dict[str, Any], name: str, needed: tuple[str, ...], allowed: tuple[str, ...], where: str
) -> dict[str, Any]:
    """The table ``name``, its figures checked."""
    table = values.get(name)
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: has no table [{name}]; it needs one with {', '.join(needed)}")
    _check_names(table, needed + allowed, f"{where}: [{name}]")
    missing = [each for each in needed if each not in table]
    if missing:
        raise ConfigError(f"{where}: [{name}] lacks {', '.join(missing)}")
    checked = {each: _figure(each, table[each], f"{where}: {name}.{each}") for each in needed}
    return checked | {each: table[each] for each in allowed if each in table}


def _figure(name: str, value: Any, where: str) -> float:
    low, high = BOUNDS[name]
    number = _bytes(value, where) if name == "memory" and isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise ConfigError(f"{where} must be a number, got {value!r}")
    if not low <= number <= high:
        raise ConfigError(f"{where} must lie between {low:g} and {high:g}, got {value!r}")
    return number


def _bytes(text: str, where: str) -> int:
    from ..data.out_of_core.settings import parse_size

    try:
        return parse_size(text)
    except ConfigError:
        raise ConfigError(f"{where} must be a size such as 64GiB, got {text!r}") from None


def _truth(values: dict[str, Any], name: str, where: str) -> bool:
    found = values.get(name, False)
    if not isinstance(found, bool):
        raise ConfigError(f"{where} must be true or false, got {found!r}")
    return found
