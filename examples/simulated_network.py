"""Collectives and training steps on networks larger than any at hand: python3 examples/simulated_network.py collectives

The discrete-event simulator SimGrid moves the messages of the package's own algorithms through a network of up to
thousands of hosts, a rank on each; no numbers travel.  Beside each simulated time stands the closed form of
``distai_mpi/perf/costs.py``, which knows latency and bandwidth but no links that messages share.

SimGrid is Debian's, for Debian's Python, and needs no MPI:

    apt-get install python3-simgrid python3-numpy
    export PYTHONPATH=$PWD          # the clone of this repository
    /usr/bin/python3 examples/simulated_network.py collectives --network fat-tree --ranks 256
    /usr/bin/python3 examples/simulated_network.py scaling --network dragonfly --ranks 1,16,256,1024
"""

import argparse
import json
import sys
from importlib.util import find_spec

from distai_mpi.perf import costs, simulated

# Every message takes latency + bytes / bandwidth.  SimGrid's default model, LV08, multiplies latencies by 13.01 to
# resemble TCP; cross traffic takes 5 % of a message's bytes in the other direction, for acknowledgements.
PLAIN = ["network/model:CM02", "network/crosstraffic:0", "surf/precision:1e-12"]
RING_LIMIT = 256  # ranks: a ring on n sends 2 n² messages, and a second simulates some thousands
MACHINE = simulated.Machine(flops=73e9, memory=40e9, reduce_rate=10e9)  # one rank is one core of docs/benchmarks.md
BANDWIDTH = 12.5e9  # bytes per second of every link
HOST_LATENCY, LINK_LATENCY = 0.5e-6, 0.1e-6  # seconds: at each end, and of every link between


class SimGridNetwork:
    """The `simulated.Network` of SimGrid: a mailbox for every pair of ranks."""

    def __init__(self, simgrid):
        self.simgrid = simgrid

    def mailbox(self, source, dest):
        return self.simgrid.Mailbox.by_name(f"{source}-{dest}")

    def send(self, source, dest, nbytes):
        return self.mailbox(source, dest).put_async(None, nbytes)

    def receive(self, source, dest):
        return Receive(*self.mailbox(source, dest).get_async())

    def sleep(self, seconds):
        self.simgrid.this_actor.sleep_for(seconds)


class Receive:
    """A message that is being received; SimGrid writes into ``payload`` at its end, so it must be kept until then."""

    def __init__(self, message, payload):
        self.message, self.payload = message, payload

    def wait(self):
        self.message.wait()


def add_link(zone, name, host, latency):
    """Join a host of a star to its centre, both directions at full speed."""
    from simgrid import LinkInRoute

    link = zone.create_split_duplex_link(name, BANDWIDTH).set_latency(latency).seal()
    zone.add_route(host.netpoint, None, None, None, [LinkInRoute(link, LinkInRoute.UP)], True)


def build(network, ranks):
    """Make the platform; return its hosts, at least ``ranks`` of them, and what it is in words."""
    from simgrid import ClusterCallbacks, DragonflyParams, FatTreeParams, Link, NetZone

    hosts = []

    def add_host(
        zone, coordinates, number
    ):  # with a link of its own: the latency of the ends, apart from the network's
        own = NetZone.create_star_zone(f"zone{number}")
        own.set_parent(zone)
        gateway = own.create_router(f"router{number}")
        hosts.append(own.create_host(f"host{number}", MACHINE.flops).seal())
        add_link(own, f"link{number}", hosts[-1], HOST_LATENCY)
        own.seal()
        return own.netpoint, gateway

    if network == "switch":
        root = NetZone.create_star_zone("switch")
        for number in range(ranks):
            hosts.append(root.create_host(f"host{number}", MACHINE.flops).seal())
            add_link(root, f"link{number}", hosts[-1], HOST_LATENCY + LINK_LATENCY)
        root.seal()
        return hosts, "one switch"
    root = NetZone.create_full_zone("root")
    shared = (ClusterCallbacks(add_host, None, None), BANDWIDTH, LINK_LATENCY, Link.SharingPolicy.SPLITDUPLEX)
    if network == "fat-tree":
        width = next(width for width in range(2, 1 << 16) if width * width >= ranks)
        parameters = FatTreeParams(2, [width, width], [1, width], [1, 1])
        NetZone.create_fatTree_zone("network", root, parameters, *shared).seal()
        words = f"fat tree of two levels: {width} switches of {width} hosts, {width} switches above them"
    else:
        # SimGrid's routes crash where there are more groups than routers in a chassis: here there are as many
        groups = next(groups for groups in range(2, 1 << 16) if 16 * groups * groups >= ranks)
        lanes = -(-16 * groups // (groups - 1))  # as many to other groups as there are hosts in one
        parameters = DragonflyParams((groups, lanes), (4, 1), (groups, 1), 4)
        NetZone.create_dragonfly_zone("network", root, parameters, *shared).seal()
        words = (
            f"dragonfly: {groups} groups of 4 chassis of {groups} routers of 4 hosts, {lanes} links between two groups"
        )
    root.seal()
    return hosts, words


def simulate(network, jobs, config):
    """Run jobs (a number of ranks, and ``work(network, rank, ranks)`` or None) one after another, on the first hosts.

    Returns the seconds of each until its last rank is done (None where there is no work), the longest latency from the
    first host to the others of each, and the platform in words.
    """
    import simgrid

    most = max(ranks for ranks, _ in jobs)
    engine = simgrid.Engine(["simgrid", "--log=xbt_cfg.thres:error", *(f"--cfg={word}" for word in config)])
    hosts, words = build(network, most)
    farthest = [max((hosts[0].route_to(host)[1] for host in hosts[1:ranks]), default=0.0) for ranks, _ in jobs]
    barrier = simgrid.Barrier(most)
    wires = SimGridNetwork(simgrid)
    starts, ends = [0.0] * len(jobs), [0.0] * len(jobs)

    def run(rank):
        for number, (ranks, work) in enumerate(jobs):
            barrier.wait()
            starts[number] = simgrid.Engine.clock
            if work and rank < ranks:
                work(wires, rank, ranks)
                ends[number] = max(ends[number], simgrid.Engine.clock)

    for rank in range(most):
        simgrid.Actor.create(f"rank{rank}", hosts[rank], run, rank)
    engine.run()
    seconds = [b - a if work else None for a, b, (_, work) in zip(starts, ends, jobs, strict=True)]
    return seconds, farthest, words


def collectives(options):
    """Rows of allreduces: every algorithm at every number of ranks and size."""
    cases = [(n, name, int(nbytes)) for n in options.ranks for name in options.algorithms for nbytes in options.bytes]

    def job(name, nbytes):
        return lambda network, rank, ranks: simulated.replay_allreduce(
            network, rank, ranks, name, nbytes, MACHINE.reduce_rate
        )

    jobs = [(ranks, job(name, nbytes) if feasible(name, ranks) else None) for ranks, name, nbytes in cases]
    seconds, latencies, words = simulate(options.network, jobs, options.cfg)
    rows = []
    for (ranks, name, nbytes), took, latency in zip(cases, seconds, latencies, strict=True):
        closed = costs.seconds(name, ranks, nbytes, latency, BANDWIDTH, MACHINE.reduce_rate)
        rows.append({"algorithm": name, "ranks": ranks, "bytes": nbytes, "simulated": took, "closed_form": closed})
    return rows, words


def scaling(options):
    """Rows of training steps: every workload, strong and weak, at every number of ranks."""
    cases = [
        (work, weak, name, ranks)
        for work in simulated.WORKLOADS
        for weak in (False, True)
        for name in options.algorithms
        for ranks in options.ranks
    ]

    def job(work, weak, name):
        return lambda network, rank, ranks: simulated.replay_step(network, rank, ranks, work, MACHINE, name, weak)

    jobs = [(ranks, job(work, weak, name) if feasible(name, ranks) else None) for work, weak, name, ranks in cases]
    seconds, latencies, words = simulate(options.network, jobs, options.cfg)
    rows = []
    for (work, weak, name, ranks), took, latency in zip(cases, seconds, latencies, strict=True):
        alone = simulated.step_seconds(1, work, MACHINE, name, weak, 0, BANDWIDTH)
        closed = simulated.step_seconds(ranks, work, MACHINE, name, weak, latency, BANDWIDTH)
        efficiency = alone / (closed if took is None else took) / (1 if weak else ranks)
        row = {"workload": work.name, "scaling": "weak" if weak else "strong", "algorithm": name, "ranks": ranks}
        rows.append(row | {"simulated": took, "closed_form": closed, "efficiency": efficiency})
    return rows, words


def feasible(name, ranks):
    """Whether the simulator is fast enough for an algorithm; where it isn't, the closed form stands alone."""
    return name != "ring" or ranks <= RING_LIMIT


def show(rows):
    """A line for each row; dashes where nothing was simulated."""
    titles = {"simulated": "simulated s", "closed_form": "closed form s"}
    table = [[*(titles.get(key, key) for key in rows[0]), "off by"]]
    for row in rows:
        took, closed = row["simulated"], row["closed_form"]
        off = "-" if took is None or not closed else f"{took / closed - 1:+.1%}"
        table.append([*(text(key, value) for key, value in row.items()), off])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(word.rjust(width) for word, width in zip(line, widths, strict=True)))


def text(key, value):
    """A cell of the table."""
    if value is None:
        return "-"
    if key == "efficiency":
        return f"{value:.1%}"
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value


def parse(words):
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["collectives", "scaling"])
    parser.add_argument("--network", choices=["switch", "fat-tree", "dragonfly"], default="switch")
    parser.add_argument("--ranks", type=lambda text: [int(word) for word in text.split(",")], default=[64])
    parser.add_argument("--algorithms", type=lambda text: text.split(","), help="of " + ",".join(costs.ALGORITHMS))
    parser.add_argument("--bytes", type=lambda text: [float(word) for word in text.split(",")], default=[4e3, 4e6, 4e8])
    parser.add_argument("--cfg", action="append", help="settings of SimGrid in place of " + " ".join(PLAIN))
    parser.add_argument("--json", metavar="FILE", help="write all rows there")
    options = parser.parse_args(words)
    options.algorithms = options.algorithms or (
        list(costs.ALGORITHMS) if options.what == "collectives" else ["rabenseifner"]
    )
    options.cfg = options.cfg or PLAIN
    if unknown := set(options.algorithms) - set(costs.ALGORITHMS):
        parser.error(f"--algorithms: no {', '.join(sorted(unknown))}; there are {', '.join(costs.ALGORITHMS)}")
    if min(options.ranks) < 1:
        parser.error("--ranks must be at least 1")
    return options


if __name__ == "__main__":
    options = parse(sys.argv[1:])
    if find_spec("simgrid") is None:
        sys.exit(f"{sys.executable} has no SimGrid: apt-get install python3-simgrid, and run it by /usr/bin/python3")
    rows, words = {"collectives": collectives, "scaling": scaling}[options.what](options)
    print(f"SIMULATED by SimGrid ({', '.join(options.cfg)}): {words}")
    show(rows)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)
