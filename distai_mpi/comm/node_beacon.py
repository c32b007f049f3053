"""How nodes tell each other what their ranks do, without MPI: by datagrams (UDP over IPv4).

MPI itself may be what hangs, and few libraries are at their best when a second thread calls them.  A datagram that is
lost is followed by another one; what comes from elsewhere is known by a token that it lacks.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import struct
from typing import TYPE_CHECKING

import numpy as np

from .watch_page import ROW, Page
from .whereabouts import Activity
from .wire import Array

if TYPE_CHECKING:
    from .ranks import Ranks

HEAD = struct.Struct("=16sII")  # token, number of the sender's group, how many rows follow
RANK = np.dtype([("rank", "i8"), ("row", ROW)])
FEW_ROWS, MOST_ROWS = 8, 220  # in one datagram: always told, and what fits 64 KiB
STILL_SECONDS = 3.0  # where there are more, ranks that have exchanged something since are not told of one by one
SIOCGIFADDR = 0x8915


class NodeBeacon:
    """Sends this node's rows to all others, and enters theirs into the page; for the rank that leads the node.

    Making one is collective over all ranks.

    Attributes:
        unheard: numbers of groups (nodes) from which nothing has come yet.
    """

    def __init__(self, comm: Ranks, page: Page) -> None:
        self._page = page
        self._socket: socket.socket | None = None
        groups = sorted(set(comm.allgather_object(page.local)))
        self._groups, self._own = groups, groups.index(page.local)
        token = comm.bcast_object(secrets.token_bytes(16))
        self._token = token
        several = len(groups) > 1
        if several and page.leader:
            with contextlib.suppress(OSError):
                self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                self._socket.bind(("", 0))
                self._socket.setblocking(False)
        port = self._socket.getsockname()[1] if self._socket is not None else None
        here = (page.hosts[comm.rank], addresses(self._socket) if self._socket else [], port)
        told = comm.allgather_object(here) if several else [here]
        self._peers: list[tuple[int, tuple[str, int]]] = []
        for number, ranks in enumerate(groups):
            host, found, port = told[ranks[0]]
            if number != self._own and port is not None:
                if host == page.hosts[comm.rank]:
                    found = ["127.0.0.1"]
                self._peers += [(number, (address, port)) for address in found]
        self.unheard = {number for number, ranks in enumerate(groups) if number != self._own}

    def send(self, still: Array) -> None:
        """Tell the other nodes of this one's ranks; ``still``: seconds since a rank was seen to move, by rank."""
        if self._socket is None:
            return
        local = np.array(self._page.local)
        rows = self._page.rows[local]
        matters = (still[local] >= STILL_SECONDS) | (rows["alarm"] != 0) | (rows["activity"] >= Activity.DEBUGGED)
        told = local if len(local) <= FEW_ROWS else local[matters][:MOST_ROWS]
        entries = np.zeros(len(told), RANK)
        entries["rank"], entries["row"] = told, self._page.rows[told]
        datagram = HEAD.pack(self._token, self._own, len(entries)) + entries.tobytes()
        for _, address in self._peers:
            with contextlib.suppress(OSError):  # a network that is down, or a queue that is full: the next one may go
                self._socket.sendto(datagram, address)

    def receive(self) -> None:
        """Enter what has come from other nodes."""
        while self._socket is not None:
            try:
                datagram = self._socket.recv(1 << 16)
            except OSError:  # nothing more
                return
            if len(datagram) >= HEAD.size:
                self._enter(datagram)

    def _enter(self, datagram: bytes) -> None:
        token, number, count = HEAD.unpack_from(datagram)
        if token != self._token or len(datagram) != HEAD.size + count * RANK.itemsize:
            return
        self.unheard.discard(number)
        rows = self._page.rows
        told = np.frombuffer(datagram, RANK, count, HEAD.size)
        moving = sorted(set(self._groups[number]) - set(told["rank"].tolist()))
        for rank, row in told.tolist():
            rows[rank] = row
        rows["beat"][moving] += 1  # what is not told of goes on
        rows["exchanges"][moving] += 1


def addresses(of: socket.socket) -> list[str]:
    """The IPv4 addresses of this machine by which others may reach it."""
    import fcntl

    found = []
    for _, name in socket.if_nameindex():
        with contextlib.suppress(OSError):  # an interface without one
            answer = fcntl.ioctl(of.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            found.append(socket.inet_ntoa(answer[20:24]))
    with contextlib.suppress(OSError):
        found += [entry[4][0] for entry in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]  # type: ignore[misc]
    return [address for address in dict.fromkeys(found) if not address.startswith("127.")]
