"""The one module that reads launcher environment variables; starts and ends the distributed process.

with Runtime.start(config.runtime) as runtime:
    ...
"""

from __future__ import annotations

import ctypes
import datetime
import gc
import os
import platform
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Literal, NoReturn

from fedhpc.config.schema import MeshConfig, RuntimeConfig

if TYPE_CHECKING:  # torch is imported when a rank starts: whoever only starts ranks does without it
    import torch
    import torch.distributed as dist

    from fedhpc.comm.liveness import Liveness
    from fedhpc.comm.mesh import Mesh

EXIT_PREEMPTED = 75  # EX_TEMPFAIL: a checkpoint is written, run the same command again
STORE_FD = "FEDHPC_STORE_FD"  # `fedhpc run --ranks N` hands rank 0 a listening socket: no race for a free port

# launcher -> names of (rank, number of ranks, local rank, local number of ranks)
LAUNCHERS: Mapping[str, tuple[str, str, str, str]] = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
}
# Started by one of these without torchrun, every process would believe itself to be alone.
UNSUPPORTED: Mapping[str, str] = {
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun",
}


@dataclass(frozen=True)
class Launch:
    """Who this process is, according to whoever started it."""

    launcher: str
    rank: int
    world: int
    local_rank: int
    local_world: int


def read_launch(environ: Mapping[str, str] | None = None) -> Launch:
    """From torchrun's (and ``fedhpc run --ranks``'s) variables; without them the process is rank 0 of 1.

    Raises:
        ValueError: some of a launcher's variables are missing or make no sense, or the launcher is not supported.
    """
    env = os.environ if environ is None else environ
    for launcher, names in LAUNCHERS.items():
        if not any(name in env for name in names[:2]):
            continue
        missing = [n for n in (*names[:2], "MASTER_ADDR", "MASTER_PORT") if n not in env]
        if STORE_FD in env:
            missing = [n for n in missing if n in names]
        if missing:
            raise ValueError(
                f"{launcher} variables are incomplete: {', '.join(missing)} not set. Start with torchrun or "
                f"`fedhpc run --ranks N`, or unset {', '.join(n for n in names if n in env)} to run alone"
            )
        rank, world = int(env[names[0]]), int(env[names[1]])
        if not 0 <= rank < world:
            raise ValueError(f"{names[0]}={rank} is not below {names[1]}={world}")
        return Launch(launcher, rank, world, int(env.get(names[2], rank)), int(env.get(names[3], world)))
    for name, launcher in UNSUPPORTED.items():
        if int(env.get(name, "1")) > 1:
            raise ValueError(
                f"{launcher} started {env[name]} processes ({name}), which would each run alone. "
                "Start one torchrun a node instead: torchrun --nnodes ... --nproc-per-node ... launch/train.py CONFIG"
            )
    return Launch("single", 0, 1, 0, 1)


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This process's environment plus `extra`, for processes that it starts."""
    return {**os.environ, **extra}


class Stop:
    """SIGTERM and SIGUSR2 ask for a checkpoint at the next safe point. A second one ends at once."""

    def __init__(self) -> None:
        self.requested = False
        self._old = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGUSR2)}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGTERM:
            raise SystemExit(128 + number)
        self.requested = True

    def restore(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


@dataclass
class Runtime:
    """A started process: mesh, device, and what watches over it."""

    launch: Launch
    mesh: Mesh
    device: torch.device
    stop: Stop
    where: list[str] = field(default_factory=lambda: ["start-up"])  # one entry: where we are, for errors
    liveness: Liveness | None = None

    @classmethod
    def start(cls, config: RuntimeConfig, mesh: MeshConfig) -> Runtime:
        """Joins the process group when there are several ranks. Every rank calls this."""
        import torch
        import torch.distributed as dist

        from fedhpc.comm.liveness import Liveness
        from fedhpc.comm.mesh import build_mesh

        launch = read_launch()
        _keep_heap()
        if STORE_FD in os.environ:
            _end_with_parent()
        torch.set_num_threads(config.threads_per_rank)
        device = _device(config.device, launch)
        backend: Literal["gloo", "nccl"] = "nccl" if device.type == "cuda" else "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
            # warn_only: a model may use an operation that has no deterministic kernel; the warning names it.
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        store = None
        if launch.world > 1:
            timeout = datetime.timedelta(seconds=config.timeout_s)
            store = _store(launch, timeout)
            dist.init_process_group(
                backend,
                store=dist.PrefixStore("fedhpc/group", store),
                rank=launch.rank,
                world_size=launch.world,
                timeout=timeout,
                device_id=device if backend == "nccl" else None,
            )
        runtime = cls(launch, build_mesh(mesh.shard, device.type), device, Stop())
        if store is not None:
            runtime.liveness = Liveness(store, launch.rank, launch.world, config.timeout_s, lambda: runtime.where[0])
            dist.barrier()
            runtime.liveness.start()
        return runtime

    @property
    def is_first(self) -> bool:
        """Rank 0 writes what people read."""
        return self.launch.rank == 0

    def ready_for_deepspeed(self) -> None:
        """What DeepSpeed reads from the environment when it is imported and when it starts."""
        os.environ.setdefault("LOCAL_RANK", str(self.launch.local_rank))
        os.environ["DS_ACCELERATOR"] = self.device.type

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        import torch.distributed as dist

        if kind is None and self.liveness is not None:
            dist.barrier()  # nobody leaves while a neighbour may still need it
        if self.liveness is not None:
            self.liveness.stop()
        self.stop.restore()
        if dist.is_initialized() and kind is None:
            # Rank 0 serves the store: it leaves last, when the others have said goodbye.
            dist.destroy_process_group()


def _keep_heap() -> None:
    """Stop glibc from handing freed memory back between steps, up to 1 GiB of it.

    A training step frees its activations at its end; glibc then shrinks the heap and grows it again in the next step:
    hundreds of page faults a step, up to a tenth of the time of a small network on a CPU (benchmarks/README.md).
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_threshold = -1, -3  # parameter numbers of mallopt(3)
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(mmap_threshold, 32 << 20)  # the most that glibc takes
    mallopt(trim_threshold, 1 << 30)


def settle() -> None:
    """Call once when all is built: hands back what building left on the heap, and tells the garbage collector that
    what is there stays, so that it does not look at half a million objects again and again."""
    gc.collect()
    gc.freeze()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _end_with_parent() -> None:
    """A rank that `fedhpc run --ranks` started is asked to stop when that process is killed (Linux)."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def _device(name: str, launch: Launch) -> torch.device:
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("runtime.device: cuda, but torch sees no GPU; set runtime.device: auto or cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if launch.local_world > count:
        raise ValueError(
            f"{launch.local_world} ranks on this node but {count} GPUs; start {count} ranks a node, "
            "or set runtime.device: cpu"
        )
    return torch.device("cuda", launch.local_rank)


def _store(launch: Launch, timeout: datetime.timedelta) -> dist.Store:
    import torch.distributed as dist

    if STORE_FD in os.environ:
        host, port, fd = os.environ[STORE_FD].split(":")
        return dist.TCPStore(
            host,
            int(port),
            launch.world,
            is_master=launch.rank == 0,
            timeout=timeout,
            master_listen_fd=int(fd) if launch.rank == 0 else None,
        )
    store, _, _ = next(dist.rendezvous("env://", launch.rank, launch.world, timeout=timeout))
    return store


def leave(code: int, text: str) -> NoReturn:
    """End this process now. The group may be broken, and taking it down in order could hang."""
    print(text, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)


def reserve_port(host: str = "127.0.0.1") -> socket.socket:
    """A listening socket for the rendezvous store, to be inherited by rank 0."""
    listener = socket.create_server((host, 0), backlog=1024)
    listener.set_inheritable(True)
    return listener
