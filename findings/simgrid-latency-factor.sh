#!/usr/bin/env bash
# SimGrid 3.32 (Debian's 3.32-2+b2): links do not have the latency and the bandwidth that a platform says.  The default
# network model, LV08, which is fitted to TCP, multiplies latencies by 13.01 and bandwidths by 0.97: over a route of 1 µs
# and 1 GB/s, whose latency `route_to` gives as 1 µs, a byte takes 13 µs and 10⁸ bytes 103 ms.  `network/model:CM02` takes
# both as they are; but two messages of 100 ms that cross in opposite directions of a split-duplex link, which do not
# share it, still take 105 ms, for each takes 5 % of its rate from the other's direction as acknowledgements.
# `network/crosstraffic:0` turns that off.  Sums of 4 kB over 64 simulated ranks took 13 times their
# closed form by default, and those of 400 MB 3 % longer by CM02 alone.
# Way out: --cfg=network/model:CM02 --cfg=network/crosstraffic:0, unless it is TCP that is simulated.
# (Needs Debian 12 with `apt-get install python3-simgrid`, for its /usr/bin/python3.)
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder"
version=$(dpkg-query -W -f '${Version}' python3-simgrid 2>/dev/null) || version=none
[ "$version" = 3.32-2+b2 ] || { echo "needs python3-simgrid=3.32-2+b2, found $version" >&2; exit 2; }
cat > messages.py <<'P'
import sys

from simgrid import Actor, Engine, LinkInRoute, Mailbox, NetZone

engine = Engine(["messages", "--log=xbt_cfg.thres:error", *sys.argv[1:]])
zone = NetZone.create_star_zone("zone")
hosts = [zone.create_host(name, 1e9).seal() for name in "ab"]
for host in hosts:
    link = zone.create_split_duplex_link(host.name, 1e9).set_latency(0.5e-6).seal()
    zone.add_route(host.netpoint, None, None, None, [LinkInRoute(link, LinkInRoute.UP)], True)
zone.seal()
seen = [f"{hosts[0].route_to(hosts[1])[1] * 1e6:.2f} us"]


def a():
    for number, unit in ((1, 1e6), (10**8, 1e3)):
        start = Engine.clock
        Mailbox.by_name("b").put("", number)
        seen.append(f"{(Engine.clock - start) * unit:.2f}")
    start = Engine.clock
    there = Mailbox.by_name("b").put_async("", 10**8)
    Mailbox.by_name("a").get()
    there.wait()
    seen.append(f"{(Engine.clock - start) * 1e3:.2f}")


def b():
    for _ in range(2):
        Mailbox.by_name("b").get()
    back = Mailbox.by_name("a").put_async("", 10**8)
    Mailbox.by_name("b").get()
    back.wait()


Actor.create("a", hosts[0], a)
Actor.create("b", hosts[1], b)
engine.run()
print("{}: 1 byte {} us, 1e8 bytes {} ms, both ways {} ms".format(*seen))
P
model=--cfg=network/model:CM02
seen=$(
    /usr/bin/python3 messages.py 2>/dev/null
    /usr/bin/python3 messages.py $model 2>/dev/null
    /usr/bin/python3 messages.py $model --cfg=network/crosstraffic:0 2>/dev/null
)
echo "$seen"
expected="1.00 us: 1 byte 13.01 us, 1e8 bytes 103.11 ms, both ways 108.26 ms
1.00 us: 1 byte 1.00 us, 1e8 bytes 100.00 ms, both ways 105.00 ms
1.00 us: 1 byte 1.00 us, 1e8 bytes 100.00 ms, both ways 100.00 ms"
[ "$seen" = "$expected" ] || { printf 'changed: expected\n%s\n' "$expected" >&2; exit 1; }
