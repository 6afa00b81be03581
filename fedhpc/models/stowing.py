"""Builds a model of which only a few tensors are in memory at a time.

    with Stowing(keeper) as stowing:
        module = build()                      # any code: libraries' own construction and loading, forward passes
    for parameter in module.parameters():
        with stowing.present(parameter): ...  # its values are there

Everything really runs, so that random numbers, and what libraries make of a checkpoint, come out to the bit as without
it. Large parameters are only put away - by a `Keeper`: to the ranks of a slot, or to a file - when newer ones need the
room, and come back for the time of an operation that has one of them among its arguments.
"""

from __future__ import annotations

import ctypes
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

SMALLEST = 1 << 18  # bytes: smaller parameters stay where they are
WINDOW = 1 << 25  # bytes of parameters that may be in memory together, but for what one operation needs


class Keeper(Protocol):
    """Where parameters are while they are away."""

    def put(self, key: int, flat: Tensor) -> None:
        """Keep the values of `flat` (float32, 1-D), which is overwritten afterwards."""

    def get(self, key: int, flat: Tensor) -> None:
        """Fill `flat` with what `put` was given."""

    def drop(self, key: int) -> None:
        """Forget them. In whatever order garbage is collected: nothing may be asked of other ranks."""


class FileKeeper:
    """Parameters in a file, for one process. The file is deleted at once, and gone with the last handle on it."""

    def __init__(self, folder: Path) -> None:
        path = folder / ".stowed"
        self._file = path.open("w+b", buffering=0)
        path.unlink()
        self._places: dict[int, int] = {}
        self._end = 0

    def put(self, key: int, flat: Tensor) -> None:
        if key not in self._places:
            self._places[key], self._end = self._end, self._end + flat.nbytes
        self._file.seek(self._places[key])
        view = _bytes_of(flat)
        while view:  # one call writes 2 GiB at most
            view = view[self._file.write(view) :]

    def get(self, key: int, flat: Tensor) -> None:
        self._file.seek(self._places[key])
        view = _bytes_of(flat)
        while view:
            count = self._file.readinto(view)
            assert count, "the file is shorter than what was put into it"
            view = view[count:]

    def drop(self, key: int) -> None:
        self._places.pop(key, None)


def _bytes_of(flat: Tensor) -> memoryview:
    """Not by numpy: a tensor that it has seen can give back its memory no more."""
    return memoryview((ctypes.c_char * flat.nbytes).from_address(flat.data_ptr())).cast("B")


class _Entry:
    """One parameter's memory. Empty while it is away."""

    def __init__(self, key: int, storage: torch.UntypedStorage) -> None:
        self.key = key
        self.storage = storage
        self.nbytes = storage.nbytes()
        self.changed = True  # since it was last put
        self.gone = False  # no one has the parameter any more

    def flat(self) -> Tensor:
        return torch.empty(0, dtype=torch.float32).set_(self.storage, 0, (self.nbytes // 4,), (1,))


class Stowing(TorchDispatchMode):
    """The context in which a model is built. With a keeper that talks to other ranks, all build alike, in step."""

    def __init__(self, keeper: Keeper, smallest: int = SMALLEST, window: int = WINDOW) -> None:
        super().__init__()
        self._keeper = keeper
        self._smallest = smallest
        self._window = window
        self._entries: dict[int, _Entry] = {}  # by what torch calls its storage
        self._here: OrderedDict[int, _Entry] = OrderedDict()  # the longest unused first
        self._count = 0
        self._register = nn.Module.register_parameter
        self._load_file = safetensors.torch.load_file
        self._read: list[_Entry] = []  # of files, for as long as the model is built: others may hold views of them

    # ------------------------------------------------------------------------------------------------ while it is built
    def __enter__(self) -> Any:
        original, stowing = self._register, self

        def register(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
            original(module, name, param)
            if param is not None:
                with _disable_current_modes():
                    stowing._take(param)

        nn.Module.register_parameter = register  # type: ignore[method-assign,assignment]
        safetensors.torch.load_file = self._load_one_by_one
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        nn.Module.register_parameter = self._register  # type: ignore[method-assign]
        safetensors.torch.load_file = self._load_file
        for entry in self._read:
            self._forget(entry)
        super().__exit__(*error)

    def _load_one_by_one(self, filename: Any, device: Any = "cpu", **options: Any) -> dict[str, Tensor]:
        """timm's way to read weights: a whole file at once."""
        if str(device) != "cpu":
            return self._load_file(filename, device, **options)
        tensors: dict[str, Tensor] = {}
        with _disable_current_modes(), safe_open(filename, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                tensors[key] = file.get_tensor(key)
                self._take(tensors[key])
        return tensors

    def _take(self, param: Tensor) -> None:
        """From now on its values may be put away."""
        known = param.device.type == "cpu" and param.untyped_storage()._cdata in self._entries
        if known or param.device.type != "cpu" or param.dtype != torch.float32 or param.nbytes < self._smallest:
            return
        storage = param.untyped_storage()
        if storage.nbytes() != param.nbytes or not storage.resizable() or not param.is_contiguous():
            param.data = param.data.clone(memory_format=torch.contiguous_format)  # a view, of a mapped file for example
            storage = param.untyped_storage()
        entry = _Entry(self._count, storage)
        self._count += 1
        self._entries[storage._cdata] = self._here[entry.key] = entry
        if isinstance(param, nn.Parameter):
            weakref.finalize(param, self._forget, entry)
        else:
            self._read.append(entry)
        self._make_room({entry.key})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        used = {e.key: e for t in tree_leaves((args, kwargs)) if (e := self._entry_of(t)) is not None}
        if not used:
            return func(*args, **kwargs)
        if func.is_view:  # needs memory to look at, whatever is in it
            away = [entry for entry in used.values() if not entry.storage.nbytes()]
            for entry in away:
                entry.storage.resize_(entry.nbytes)
            out = func(*args, **kwargs)
            for entry in away:
                entry.storage.resize_(0)
            return out
        for entry in used.values():
            self._bring(entry)
        out = func(*args, **kwargs)
        for entry in used.values():
            entry.changed |= func._schema.is_mutable
        self._make_room(set(used))
        return out

    def _entry_of(self, value: Any) -> _Entry | None:
        if not isinstance(value, Tensor) or value.device.type != "cpu" or value.layout != torch.strided:
            return None
        return self._entries.get(value.untyped_storage()._cdata)

    # ---------------------------------------------------------------------------------------------------- away and back
    def _bring(self, entry: _Entry) -> None:
        if entry.key not in self._here:
            entry.storage.resize_(entry.nbytes)
            self._keeper.get(entry.key, entry.flat())
            self._here[entry.key] = entry
        self._here.move_to_end(entry.key)

    def _make_room(self, needed: set[int]) -> None:
        """Entries of parameters that nobody has any more still count, until their turn: when garbage is collected
        differs from rank to rank, and ranks must agree on what is away."""
        total = sum(entry.nbytes for entry in self._here.values())
        for key in list(self._here):
            if total <= self._window:
                return
            if key not in needed:
                entry = self._here.pop(key)
                total -= entry.nbytes
                if entry.changed and not entry.gone:
                    self._keeper.put(key, entry.flat())
                    entry.changed = False
                entry.storage.resize_(0)

    def _forget(self, entry: _Entry) -> None:
        entry.gone = True
        self._entries.pop(entry.storage._cdata, None)
        self._keeper.drop(entry.key)

    # ------------------------------------------------------------------------------------------------ once it is built
    @contextmanager
    def present(self, param: Tensor) -> Iterator[Tensor]:
        """The parameter with its values, on every rank of the keeper at once."""
        entry = self._entry_of(param)
        if entry is not None:
            self._bring(entry)
        yield param
        if entry is not None:
            self._make_room(set())

    def release(self, param: Tensor) -> None:
        """Its values are elsewhere now: forget them, and give back their memory."""
        entry = self._entry_of(param)
        if entry is not None:
            self._here.pop(entry.key, None)
            self._forget(entry)
            entry.storage.resize_(0)

    def stowed(self, module: nn.Module) -> Mapping[str, int]:
        """Names and bytes of the parameters that may be away."""
        named = {name: self._entry_of(param) for name, param in module.named_parameters()}
        return {name: entry.nbytes for name, entry in named.items() if entry is not None}
