"""How ranks find each other when no launcher says where rank 0 listens.

Rank 0 lets the system choose a free port, so that two jobs on a node cannot collide, and tells the others where it is:
through a file in a folder that all ranks see, named by the job (step and restart included), or by an MPI broadcast.
The file may be one that an earlier job with the same name left behind. So it carries a token drawn at every start;
whoever connects compares it with the token in the store it reaches, and looks again when they differ. Nobody has to set
a secret.
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
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch.distributed as dist

FOLDER = ".rendezvous"
TOKEN = "fedhpc/token"
PROBE_S = 3.0  # to connect to an address that may be a wrong one
GREET_S = 10.0  # for the first answer of what listens there


class NoRendezvous(RuntimeError):
    """Ranks did not find each other in time."""


@dataclass(frozen=True)
class Meeting:
    """Where rank 0 listens: addresses in the order in which they should be tried."""

    node: str  # its machine, on which the loopback address works too
    addresses: tuple[str, ...]
    port: int
    token: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Meeting:
        """Raises ValueError when it is no meeting."""
        try:
            fields = json.loads(text)
            return cls(fields["node"], tuple(fields["addresses"]), int(fields["port"]), fields["token"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"no meeting: {text[:100]}") from error


def host_store(world: int, timeout_s: float) -> tuple[dist.Store, Meeting]:
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
    meeting = Meeting(socket.gethostname(), own_addresses(), port, uuid.uuid4().hex)
    store.set(TOKEN, meeting.token)
    return store, meeting


def join_store(meeting: Meeting, world: int, timeout_s: float) -> tuple[dist.Store, str]:
    """Others: rank 0's store and the address by which it was reached.

    Raises:
        NoRendezvous: nobody there answers, or it is not rank 0 of this job.
    """
    addresses = [*meeting.addresses, *(["127.0.0.1"] if meeting.node == socket.gethostname() else [])]
    found = []
    for address in addresses:
        try:
            socket.create_connection((address, meeting.port), timeout=PROBE_S).close()
            greeting = datetime.timedelta(seconds=GREET_S)
            store = dist.TCPStore(address, meeting.port, world, False, greeting, wait_for_workers=False)
            if store.get(TOKEN).decode() != meeting.token:
                raise RuntimeError("another job listens there")
        except (OSError, RuntimeError) as error:  # torch's errors are RuntimeErrors
            found.append(f"{address}:{meeting.port}: {str(error).splitlines()[0]}")
            continue
        store.set_timeout(datetime.timedelta(seconds=timeout_s))
        return store, address
    raise NoRendezvous("; ".join(found))


# -------------------------------------------------------------------------------------------------- ways to tell others
def meet_by_file(folder: Path, job: str, rank: int, world: int, timeout_s: float) -> tuple[dist.Store, str]:
    """The store and the address by which this rank reaches it. Every rank calls this; `forget` the file afterwards.

    Args:
        folder: seen by all ranks, such as the run folder.
        job: names this start of the job.

    Raises:
        NoRendezvous: rank 0 could not be reached within `timeout_s`.
        OSError: the folder cannot be written.
    """
    path = meeting_file(folder, job)
    if rank == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        store, meeting = host_store(world, timeout_s)
        temporary = path.with_suffix(f".{meeting.token}")
        temporary.write_text(meeting.to_json())
        temporary.replace(path)
        return store, meeting.addresses[0]
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


def meeting_file(folder: Path, job: str) -> Path:
    return folder / FOLDER / f"{job}.json"


def forget(folder: Path, job: str) -> None:
    """Rank 0, when all have arrived."""
    path = meeting_file(folder, job)
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
        path.parent.rmdir()


def meet_by_mpi(rank: int, world: int, timeout_s: float) -> tuple[dist.Store, str]:
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
    try:
        comm = MPI.COMM_WORLD
        if (comm.Get_rank(), comm.Get_size()) != (rank, world):
            raise RuntimeError(
                f"mpi4py sees rank {comm.Get_rank()} of {comm.Get_size()}, mpirun says {rank} of {world}: its MPI "
                "library is not mpirun's"
            )
        store = None
        text = bytearray(4096)
        if rank == 0:
            store, meeting = host_store(world, timeout_s)
            encoded = meeting.to_json().encode()
            text[: len(encoded)] = encoded
        comm.Bcast(text, root=0)
    finally:
        if begun_here:
            MPI.Finalize()
    if store is not None:
        return store, meeting.addresses[0]
    return join_store(Meeting.from_json(bytes(text).rstrip(b"\0").decode()), world, timeout_s)


def meet_at(host: str, port: int, rank: int, world: int, timeout_s: float, fd: int | None = None) -> dist.Store:
    """At a place that all know. fd: rank 0's listening socket."""
    return dist.TCPStore(
        host,
        port,
        world,
        is_master=rank == 0,
        timeout=datetime.timedelta(seconds=timeout_s),
        master_listen_fd=fd if rank == 0 else None,
    )


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
