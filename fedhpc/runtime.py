"""The one module that reads the process environment (by the table in environment.py); starts and ends a rank.

with Runtime.start(config.runtime, config.mesh, run_dir) as runtime:
    ...
"""

from __future__ import annotations

import datetime
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from fedhpc.config.schema import MeshConfig, RuntimeConfig
from fedhpc.environment import (
    GLOO_INTERFACE,
    MASTER,
    MPI,
    MPI_ABI,
    THREADS,
    Launch,
    allocation_end,
    check_threads,
    cpus_on_node,
    forgotten_ranks,
    parse_launch,
)
from fedhpc.process import Stop, end_with_parent, keep_heap, let_threads_rest, warn
from fedhpc.process import leave as leave
from fedhpc.process import settle as settle

if TYPE_CHECKING:  # torch is imported when a rank starts: whoever only starts ranks does without it
    import torch
    import torch.distributed as dist

    from fedhpc.comm.liveness import Liveness
    from fedhpc.comm.mesh import Mesh
    from fedhpc.comm.rendezvous import Met

STORE_FD = "FEDHPC_STORE_FD"  # `fedhpc run --ranks N` hands rank 0 a listening socket: no race for a free port
LARGEST_ON_HEAP = 1 << 20  # bytes, of a sharded model: its tensors are what memory is scarce for
USER_ERRORS = (ValueError, FloatingPointError, OSError)  # exit code 2: starting again would not help


class Preempted(Exception):
    """Asked to stop: a checkpoint of all finished rounds is written. Raised on every rank."""


def read_launch(environ: Mapping[str, str] | None = None) -> Launch:
    """From the launcher's variables (`fedhpc.environment`); without them the process is rank 0 of 1.

    Raises:
        ValueError: some of a launcher's variables are missing or make no sense.
    """
    env = os.environ if environ is None else environ
    return parse_launch(env, listens=STORE_FD in env)


def warn_if_alone(launch: Launch) -> None:
    """For a command whose ranks somebody may have meant to start with srun."""
    tasks = forgotten_ranks(os.environ, launch)
    if tasks:
        warn(
            f"this Slurm allocation is for {tasks} tasks, but one process runs alone; put srun before the command, "
            f"or add --ranks {tasks}"
        )


def prepare_mpi(launch: Launch) -> None:
    """Call before mpi4py is imported: it takes whichever MPI library it finds first."""
    if launch.mpi:
        os.environ.setdefault(MPI_ABI, launch.mpi.replace(" ", "").lower())


def limit_threads(threads: int) -> None:
    """Call before NumPy and torch are imported: their libraries would start a thread for every CPU of the node."""
    for name in THREADS:
        os.environ[name] = str(threads)


def usable_cpus() -> int:
    """CPUs of this node that the job, or this process, may use."""
    return cpus_on_node(os.environ)


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This process's environment plus `extra`, for processes that it starts."""
    return {**os.environ, **extra}


@dataclass
class Runtime:
    """A started process: mesh, device, and what watches over it."""

    launch: Launch
    mesh: Mesh
    device: torch.device
    stop: Stop
    ends_at: float | None = None  # when the allocation ends, in seconds since 1970; known by rank 0 alone
    margin_s: float = 0.0
    where: list[str] = field(default_factory=lambda: ["start-up"])  # one entry: where we are, for errors
    liveness: Liveness | None = None

    @classmethod
    def start(
        cls, config: RuntimeConfig, mesh: MeshConfig, folder: Path | None = None, stop: Stop | None = None
    ) -> Runtime:
        """Joins the process group when there are several ranks. Every rank calls this.

        Args:
            folder: seen by all ranks, such as the run folder; ranks of some launchers meet by a file in it. Default:
                the working directory.
            stop: made earlier, to catch signals from then on.

        Raises:
            ValueError: the launcher's variables, the allocation, the devices and the config do not fit together.
            RankLost: the ranks did not find each other in time.
        """
        stop = stop or Stop()
        try:
            return cls._join(config, mesh, folder or Path(), stop)
        except BaseException:
            stop.restore()
            raise

    @classmethod
    def _join(cls, config: RuntimeConfig, mesh: MeshConfig, folder: Path, stop: Stop) -> Runtime:
        import torch
        import torch.distributed as dist

        from fedhpc.comm.collectives import RankLost
        from fedhpc.comm.liveness import Liveness
        from fedhpc.comm.mesh import build_mesh

        launch = read_launch()
        keep_heap()
        if STORE_FD in os.environ:
            end_with_parent()
        slow = check_threads(os.environ, launch, config.threads_per_rank)
        if slow and launch.local_rank == 0:
            warn(slow)
        torch.set_num_threads(config.threads_per_rank)
        device = _device(config.device, launch)
        backend: Literal["gloo", "nccl"] = "nccl" if device.type == "cuda" else "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
            # warn_only: a model may use an operation that has no deterministic kernel; the warning names it.
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        if launch.world == 1:
            runtime = cls(launch, build_mesh(mesh.shard, device.type), device, stop, margin_s=config.time_margin_s)
        else:
            try:
                met = _meet(launch, folder, config.timeout_s)
                if device.type == "cuda":
                    _refuse_shared_gpus(met.store, launch, device)
                dist.init_process_group(
                    backend,
                    store=dist.PrefixStore("fedhpc/group", met.store),
                    rank=launch.rank,
                    world_size=launch.world,
                    timeout=datetime.timedelta(seconds=config.timeout_s),
                    device_id=device if backend == "nccl" else None,
                )
                runtime = cls(launch, build_mesh(mesh.shard, device.type), device, stop, margin_s=config.time_margin_s)
                runtime.liveness = Liveness(
                    met.store, launch.rank, launch.world, config.timeout_s, lambda: runtime.where[0]
                )
                dist.barrier()
            except RuntimeError as error:  # torch's and ours
                raise RankLost(f"the ranks did not come together: {error}") from error
            runtime.liveness.start()
            met.done()
        if launch.rank == 0:
            runtime.ends_at = allocation_end(os.environ)
        return runtime

    def must_stop(self, round_s: float | None) -> bool:
        """Whether this rank was asked to stop, or (known to rank 0) another round might outlast the allocation.

        Args:
            round_s: what a round takes, checkpoint and evaluation included. None before the first one: it is tried, so
                that every start of a job brings the run on.
        """
        if self.stop.requested:
            return True
        if round_s is None or self.ends_at is None or time.time() + round_s + self.margin_s < self.ends_at:
            return False
        self.ends_at = allocation_end(os.environ)  # it may have been prolonged since
        return self.ends_at is not None and time.time() + round_s + self.margin_s >= self.ends_at

    @property
    def is_first(self) -> bool:
        """Rank 0 writes what people read."""
        return self.launch.rank == 0

    def ready_for_deepspeed(self) -> None:
        """What DeepSpeed reads from the environment when it is imported and when it starts."""
        if (
            self.device.type == "cuda"
        ):  # what it takes for the GPU's number; a rank that sees its own alone has number 0
            os.environ["LOCAL_RANK"] = str(self.device.index)
        os.environ.setdefault("LOCAL_RANK", str(self.launch.local_rank))
        os.environ["DS_ACCELERATOR"] = self.device.type
        os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # transformers would read tensors ahead of who deals them out
        keep_heap(largest=LARGEST_ON_HEAP)

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        import torch.distributed as dist

        from fedhpc.comm.collectives import RankLost

        together = kind is None or issubclass(kind, Preempted)
        if together and self.liveness is not None:
            self.where[0] = "the end"
            try:
                dist.barrier()  # nobody leaves while a neighbour may still need it
            except RuntimeError as lost:
                raise RankLost(self.liveness.diagnose()) from lost
        if self.liveness is not None:
            self.liveness.stop()
            if kind is not None and issubclass(kind, USER_ERRORS):
                self.liveness.refuse(str(error))
        self.stop.restore()
        if dist.is_initialized() and together:
            # Rank 0 serves the store: it leaves last, when the others have said goodbye.
            dist.destroy_process_group()
            let_threads_rest()


def _device(name: str, launch: Launch) -> torch.device:
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("runtime.device: cuda, but torch sees no GPU; set runtime.device: auto or cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if count == 1 and launch.local_world > 1:
        return torch.device("cuda", 0)  # srun --gpus-per-task=1 shows each rank its own alone
    if launch.local_world > count:
        raise ValueError(
            f"{launch.local_world} ranks on this node but {count} GPUs; start {count} ranks a node, "
            "or set runtime.device: cpu"
        )
    return torch.device("cuda", launch.local_rank)


def _refuse_shared_gpus(store: dist.Store, launch: Launch, device: torch.device) -> None:
    """NCCL takes one rank a GPU. Every rank calls this; raises ValueError on ranks whose GPU another one has too."""
    import torch

    mine = f"{platform.node()} {torch.cuda.get_device_properties(device).uuid}"
    store.set(f"fedhpc/gpu/{launch.rank}", mine)
    others = [r for r in range(launch.world) if r != launch.rank and store.get(f"fedhpc/gpu/{r}").decode() == mine]
    if others:
        raise ValueError(
            f"ranks {launch.rank} and {', '.join(map(str, others))} have one GPU; start as many ranks a node as it has "
            "GPUs, with --gpus-per-task=1 or all GPUs visible to every rank, or set runtime.device: cpu"
        )


def _meet(launch: Launch, folder: Path, timeout_s: float) -> Met:
    """The store through which ranks meet; also tells gloo which network to use where it could not know."""
    from fedhpc.comm import rendezvous

    if STORE_FD in os.environ:
        host, port, fd = os.environ[STORE_FD].split(":")
        return rendezvous.meet_at(host, int(port), launch.rank, launch.world, timeout_s, int(fd))
    if launch.master:
        met = rendezvous.meet_by_environment(launch.rank, launch.world, timeout_s, os.environ[MASTER[0]])
    else:
        met = _meet_unaided(launch, folder, timeout_s)
    if launch.spans_nodes and GLOO_INTERFACE not in os.environ and rendezvous.hostname_is_loopback():
        interface = rendezvous.interface_towards(met.address)
        if interface is not None:
            os.environ[GLOO_INTERFACE] = interface
    return met


def _meet_unaided(launch: Launch, folder: Path, timeout_s: float) -> Met:
    """Where no launcher says who listens where."""
    from fedhpc.comm import rendezvous

    why = ""
    if launch.launcher in MPI:
        prepare_mpi(launch)
        try:
            return rendezvous.meet_by_mpi(launch.rank, launch.world, timeout_s)
        except rendezvous.NoRendezvous:
            raise
        except (ImportError, RuntimeError) as error:
            why = (
                f"mpi4py cannot be used ({error}): pip install 'fedhpc[mpi]', and load the MPI module of this mpirun, "
                "so that LD_LIBRARY_PATH leads to its library"
            )
    if not launch.job:
        raise ValueError(f"{launch.launcher} does not tell ranks apart from an earlier start, and {why}")
    try:
        return rendezvous.meet_by_file(folder, launch.job, launch.rank, launch.world, timeout_s)
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be written: {error}; ranks meet there, so set --run-dir to a folder that all can see and "
            "write"
        ) from error
