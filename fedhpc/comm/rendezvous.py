"""How ranks find each other when no launcher says where rank 0 listens.

Rank 0 lets the system choose a free port, so that two jobs on a node cannot collide, and tells the others where it is:
through a file in a folder that all ranks see, named by the job (step and restart included), or by an MPI broadcast.
The file may be one that an earlier job with the same name left behind. So it carries a token drawn at every start;
beside the store, rank 0 has a door that tells this token to whoever knocks. Only where it is the file's is the store
used: who else may listen there could keep a rank waiting for good. Nobody has to set a secret.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import random
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch.distributed as dist

FOLDER = ".rendezvous"
MEETING_BYTES = 4096
KNOCK_S = 5.0  # to reach an address that may be a wrong one, and to be answered there


class NoRendezvous(RuntimeError):
    """Ranks did not find each other in time."""


@dataclass(frozen=True)
class Meeting:
    """Where rank 0 listens: addresses in the order in which they should be tried."""

    node: str  # its machine, on which the loopback address works too
    addresses: tuple[str, ...]
    port: int  # of the store
    door: int  # port that tells the token
    token: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Meeting:
        """Raises ValueError when it is no meeting."""
        try:
            found = json.loads(text)
            ports = int(found["port"]), int(found["door"])
            return cls(found["node"], tuple(found["addresses"]), *ports, found["token"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"no meeting: {text[:100]}") from error


class Door(threading.Thread):
    """Tells everyone who connects the token, until it is shut."""

    def __init__(self) -> None:
        super().__init__(name="fedhpc-door", daemon=True)
        self.token = uuid.uuid4().hex
        self._listener = socket.create_server(("0.0.0.0", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self.start()

    def run(self) -> None:
        while True:
            try:
                visitor, _ = self._listener.accept()
            except OSError:
                return  # shut
            with visitor, contextlib.suppress(OSError):
                visitor.settimeout(KNOCK_S)
                visitor.sendall(self.token.encode())

    def shut(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._listener.close()
        self.join()


@dataclass
class Met:
    """A rank that found the others: the store, and the address at which it (rank 0: others) reached it."""

    store: dist.Store
    address: str
    done: Callable[[], None] = lambda: None
    """Call when all have arrived: takes away what only latecomers would need."""


def host_store(world: int, timeout_s: float) -> tuple[dist.Store, Meeting, Door]:
    """Rank 0: a store on a free port of all interfaces, and where it is."""
    listener = socket.create_server(("0.0.0.0", 0), backlog=max(128, world))
    port = listener.getsockname()[1]
    store = dist.TCPStore(
        "127.0.0.1",
        port,
        world,
        is_master=True,
        timeout=datetime.timedelta(seconds=timeout_s),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    door = Door()
    return store, Meeting(socket.gethostname(), own_addresses(), port, door.port, door.token), door


def join_store(meeting: Meeting, world: int, timeout_s: float) -> Met:
    """Others: rank 0's store.

    Raises:
        NoRendezvous: nobody there answers, or it is not rank 0 of this job.
    """
    addresses = [*meeting.addresses, *(["127.0.0.1"] if meeting.node == socket.gethostname() else [])]
    found = []
    for address in addresses:
        try:
            knock(address, meeting)
            timeout = datetime.timedelta(seconds=timeout_s)
            return Met(dist.TCPStore(address, meeting.port, world, False, timeout, wait_for_workers=False), address)
        except (OSError, RuntimeError) as error:  # torch's errors are RuntimeErrors
            found.append(f"{address}: {str(error).splitlines()[0]}")
    raise NoRendezvous("; ".join(found))


def knock(address: str, meeting: Meeting) -> None:
    """Raises OSError when nobody opens, or somebody else."""
    told = b""
    with socket.create_connection((address, meeting.door), timeout=KNOCK_S) as visit:
        while len(told) < len(meeting.token) and (part := visit.recv(64)):
            told += part
    if told.decode(errors="replace") != meeting.token:
        raise OSError("another job listens there")


# -------------------------------------------------------------------------------------------------- ways to tell others
def meet_by_file(folder: Path, job: str, rank: int, world: int, timeout_s: float) -> Met:
    """Every rank calls this.

    Args:
        folder: seen by all ranks, such as the run folder.
        job: names this start of the job.

    Raises:
        NoRendezvous: rank 0 could not be reached within `timeout_s`.
        OSError: the folder cannot be written.
    """
    path = folder / FOLDER / f"{job}.json"
    if rank == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        store, meeting, door = host_store(world, timeout_s)
        temporary = path.with_suffix(f".{meeting.token}")
        temporary.write_text(meeting.to_json())
        temporary.replace(path)

        def done() -> None:
            door.shut()
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
                path.parent.rmdir()

        return Met(store, meeting.addresses[0], done)
    deadline = time.monotonic() + timeout_s
    why, pause = "it was never written", 0.05
    while time.monotonic() < deadline:
        try:
            # Listing the folder makes NFS look at the server; opening a name that was missing may not, for a minute.
            if path.name in os.listdir(path.parent):
                return join_store(Meeting.from_json(path.read_text()), world, timeout_s)
        except (NoRendezvous, ValueError, OSError) as error:
            why = str(error)
        time.sleep(pause * (1 + random.random()))
        pause = min(2 * pause, 1.0)
    raise NoRendezvous(
        f"rank {rank} of {world} did not find rank 0 within {timeout_s:.0f} s through {path} ({why}). Did all ranks "
        "start, and do they see the same run folder? See docs/troubleshooting.md"
    )


def meet_by_mpi(rank: int, world: int, timeout_s: float) -> Met:
    """The same over an MPI broadcast. MPI is ended at once: from here on the process may exit in any way.

    Raises:
        ImportError, RuntimeError: mpi4py is missing, or its MPI is not the one that started this process.
        NoRendezvous: rank 0 could not be reached.
    """
    import mpi4py

    mpi4py.rc.initialize = False
    mpi4py.rc.finalize = False
    from mpi4py import MPI

    begun_here = not MPI.Is_initialized()
    if begun_here:
        MPI.Init()
    met = None
    text = bytearray(MEETING_BYTES)
    try:
        comm = MPI.COMM_WORLD
        if (comm.Get_rank(), comm.Get_size()) != (rank, world):
            raise RuntimeError(
                f"mpi4py sees rank {comm.Get_rank()} of {comm.Get_size()}, mpirun says {rank} of {world}: its MPI "
                "library is not mpirun's"
            )
        if rank == 0:
            store, meeting, door = host_store(world, timeout_s)
            met = Met(store, meeting.addresses[0], door.shut)
            text[:] = meeting.to_json().encode().ljust(MEETING_BYTES)
        comm.Bcast(text, root=0)
    finally:
        if begun_here:
            MPI.Finalize()
    return met or join_store(Meeting.from_json(text.decode()), world, timeout_s)


def meet_at(host: str, port: int, rank: int, world: int, timeout_s: float, fd: int | None = None) -> Met:
    """At a place that all know. fd: rank 0's listening socket."""
    store = dist.TCPStore(
        host,
        port,
        world,
        is_master=rank == 0,
        timeout=datetime.timedelta(seconds=timeout_s),
        master_listen_fd=fd if rank == 0 else None,
    )
    return Met(store, host)


def meet_by_environment(rank: int, world: int, timeout_s: float, host: str) -> Met:
    """As MASTER_ADDR (`host`) and MASTER_PORT say, and torchrun's own rules."""
    timeout = datetime.timedelta(seconds=timeout_s)
    store, _, _ = next(dist.rendezvous("env://", rank, world, timeout=timeout))
    return Met(store, host)


# ------------------------------------------------------------------------------------------------------------ addresses
def own_addresses() -> tuple[str, ...]:
    """IPv4 addresses of this machine that others may reach, likeliest first; loopback where there is nothing else."""
    found: list[str] = []
    with contextlib.suppress(OSError):
        found += socket.gethostbyname_ex(socket.gethostname())[2]
    with contextlib.suppress(OSError):
        found.append(source_address("192.0.2.1"))  # documentation range: nothing is sent, the default route decides
    found += [address for _, address in interfaces()]
    outside = [a for a in dict.fromkeys(found) if not a.startswith(("127.", "169.254."))]
    return tuple(outside) or ("127.0.0.1",)


def source_address(target: str) -> str:
    """The own address from which packets to `target` leave. Raises OSError without a route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((target, 9))
        return str(probe.getsockname()[0])


def interfaces() -> Iterator[tuple[str, str]]:
    """(name, IPv4 address) of every interface that has one."""
    get_address = 0x8915  # SIOCGIFADDR of netdevice(7)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(probe.fileno(), get_address, struct.pack("256s", name.encode()[:15]))
                yield name, socket.inet_ntoa(answer[20:24])


def interface_towards(address: str) -> str | None:
    """Name of the interface that leads to `address` (for an own address: the one that has it); None when unknown."""
    try:
        source = source_address(address)
    except OSError:
        return None
    return next((name for name, own in interfaces() if own == source), None)


def hostname_is_loopback() -> bool:
    """Whether this machine's name leads to itself only, as in Debian's /etc/hosts. gloo would announce that address."""
    try:
        return socket.gethostbyname(socket.gethostname()).startswith("127.")
    except OSError:
        return True
