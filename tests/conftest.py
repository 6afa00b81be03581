"""For every test: one torch thread, skips with a reason, and no leaks."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
# pytest's own, and what libraries set once when they are first imported or started.
OWN_VARIABLES = (
    "PYTEST_",
    "TORCHINDUCTOR_",
    "_TORCHINDUCTOR_",
    "KINETO_",
    "CUDA_",
    "KMP_",
    "TOKENIZERS_PARALLELISM",
    "HF_",
    "TF_",
)

# These machines are noisy: how long an example takes says nothing. CI draws the same examples each time.
settings.register_profile("fedhpc", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("fedhpc")

# Before torch is imported by any test: its kernels then use one thread from the start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def shared_folder() -> Path:
    """Folder of the real data: $FEDHPC_SHARED, or ../shared beside the checkout."""
    return Path(os.environ.get("FEDHPC_SHARED", ROOT.parent / "shared"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    data = shared_folder() / "data"
    if not data.is_dir():
        skip_real = pytest.mark.skip(reason=f"no real data at {data}; set FEDHPC_SHARED to the folder that holds data/")
        for item in items:
            if item.get_closest_marker("real"):
                item.add_marker(skip_real)
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_items and not _has_cuda():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device"))


def _has_cuda() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch  # only where a test asks for a GPU: config tests start without torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """../shared/data, for tests marked `real`."""
    data = shared_folder() / "data"
    if not data.is_dir():
        pytest.skip(f"no real data at {data}; set FEDHPC_SHARED to the folder that holds data/")
    return data


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """A test that leaves an environment variable, a thread or a process group behind fails."""
    variables = dict(os.environ)
    threads = set(threading.enumerate())
    had_group = _has_process_group()  # of a fixture with a wider scope
    yield
    leaks = [*leaked_variables(variables), *leaked_threads(threads), *([] if had_group else leaked_process_group())]
    if leaks:
        pytest.fail("the test left behind: " + "; ".join(leaks), pytrace=False)


def leaked_variables(before: dict[str, str]) -> list[str]:
    """Differences from `before`, which is restored."""
    now = dict(os.environ)
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    leaks = [name for name in changed if not name.startswith(OWN_VARIABLES)]
    for name in leaks:
        if name in before:
            os.environ[name] = before[name]
        else:
            del os.environ[name]
    return [f"environment variable {name}" for name in leaks]


def leaked_threads(before: set[threading.Thread], patience_s: float = 2.0) -> list[str]:
    """Non-daemon threads that are still alive after a moment of patience."""
    deadline = time.monotonic() + patience_s
    for thread in set(threading.enumerate()) - before:
        if not thread.daemon:
            thread.join(max(0.0, deadline - time.monotonic()))
    alive = [thread for thread in set(threading.enumerate()) - before if thread.is_alive() and not thread.daemon]
    return [f"thread {thread.name}" for thread in alive]


def leaked_process_group() -> list[str]:
    """The default process group, which is destroyed so that the next test can start its own."""
    if not _has_process_group():
        return []
    sys.modules["torch.distributed"].destroy_process_group()
    return ["process group"]


def _has_process_group() -> bool:
    dist = sys.modules.get("torch.distributed")
    return dist is not None and dist.is_available() and dist.is_initialized()
