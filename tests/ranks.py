"""Runs a function on N ranks of this machine. Plain functions, no classes:

    results = on_ranks(2, function, argument)   # one result a rank

A fork server imports torch and the encoders' libraries once for each test process, so that a rank starts in
milliseconds.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

TIMEOUT_S = 240.0


class RankFailed(Exception):
    """What went wrong on which ranks: rank -> traceback, or the signal that ended it."""

    def __init__(self, failures: dict[int, str]) -> None:
        self.failures = failures
        super().__init__("\n".join(f"rank {rank}: {text}" for rank, text in failures.items()))


def _play(rank: int, world: int, port: int, pipe: Connection, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    if world > 1:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        pipe.send((True, fn(*args)))
    except BaseException:
        pipe.send((False, traceback.format_exc()))
        os._exit(1)  # the group may be broken; its destructors could hang


def on_ranks(world: int, fn: Callable[..., Any], *args: Any) -> list[Any]:
    """fn(*args) in `world` processes; their results by rank. Raises RankFailed when any fails or dies."""
    context = multiprocessing.get_context("forkserver")
    preload = ["torch", "torch._dynamo", "fedhpc.task", "timm", "transformers.models.bert"]
    preload += [name for name in ("deepspeed", "dp_accounting") if importlib.util.find_spec(name) is not None]
    context.set_forkserver_preload(preload)
    for attempt in range(3):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        results, failures = _attempt(context, world, port, fn, args)
        if failures and attempt < 2 and any("address already in use" in text.lower() for text in failures.values()):
            continue  # another process took the port between our look and rank 0's
        break
    if failures:
        raise RankFailed(failures)
    return [results[rank] for rank in range(world)]


def _attempt(
    context: Any, world: int, port: int, fn: Callable[..., Any], args: tuple[Any, ...]
) -> tuple[dict[int, Any], dict[int, str]]:
    pipes, processes = [], []
    for rank in range(world):
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_play, args=(rank, world, port, theirs, fn, args), daemon=True)
        process.start()
        theirs.close()
        pipes.append(mine)
        processes.append(process)
    results: dict[int, Any] = {}
    failures: dict[int, str] = {}
    for rank, (pipe, process) in enumerate(zip(pipes, processes, strict=True)):
        try:
            if not pipe.poll(TIMEOUT_S):
                failures[rank] = f"no answer within {TIMEOUT_S:.0f} s"
                process.kill()
            else:
                good, value = pipe.recv()
                (results if good else failures)[rank] = value
        except EOFError:
            process.join()
            failures[rank] = f"died with exit code {process.exitcode}"
        process.join()
        pipe.close()
        process.close()
    return results, failures
