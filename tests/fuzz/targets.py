"""The three readers: what good files look like, how they are damaged, and everything that reads them."""

from __future__ import annotations

import json
import random
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np
import torch

from fedhpc.comm.collectives import Collectives
from fedhpc.comm.ledger import Ledger
from fedhpc.comm.mesh import Mesh
from fedhpc.config.checks import check
from fedhpc.config.load import ConfigError, dump_config, load_config
from fedhpc.data.hdf5 import PackedFile, PackWriter
from fedhpc.data.images import encode_png
from fedhpc.federation.checkpoint import Checkpoints
from fedhpc.interfaces import Block, Layout, Piece, TensorSpec
from tests.conftest import ROOT
from tests.fuzz.mutate import TOKENS, VALUES, damaged_bytes, damaged_text, damaged_tree

ROWS = 7


class Hdf5:
    """PackedFile: opening, all properties, all columns, whole and by rows, the checksum."""

    name = "hdf5"
    declared = (ValueError, FileNotFoundError)

    def prepare(self, folder: Path) -> None:
        for kind in ("plain", "encoded", "gzip"):
            fixed = mock.Mock(now=lambda zone: datetime(2026, 1, 1, tzinfo=UTC))
            with mock.patch("fedhpc.data.writer.datetime", fixed):
                _pack(folder / f"{kind}.h5", kind)

    def damage(self, seeds: Path, folder: Path, rng: random.Random) -> None:
        source = rng.choice(sorted(seeds.glob("*.h5")))
        path = folder / "case.h5"
        if rng.random() < 0.6:
            path.write_bytes(damaged_bytes(source.read_bytes(), rng))
            return
        shutil.copy(source, path)
        with h5py.File(path, "r+") as file:
            for _ in range(rng.choice([1, 1, 2, 3])):
                _damage_structure(file, rng)

    def exercise(self, folder: Path) -> None:
        with PackedFile(folder / "case.h5") as packed:
            n = packed.num_rows
            rows = np.array([0, n // 2, n - 1, 0]) if n > 0 else np.arange(0)
            for name, member in vars(PackedFile).items():
                if isinstance(member, property):
                    getattr(packed, name)
            assert packed.columns is not None and packed.attribute("missing") is None
            for column in packed.columns:
                packed.chunk_rows(column)
                packed.decoded_bytes(column)
                packed.read(column)
                if not column.startswith(("mask", "captions")):
                    packed.read(column, rows)
            packed.row_ids()
            packed.patients(rows)
            if "text" in packed.modalities:
                packed.texts()
                packed.texts(rows)
            if packed.caption_offsets is not None:
                packed.captions()
                packed.captions(rows)
            packed.verify()


def _pack(path: Path, kind: str) -> None:
    random = np.random.default_rng(0)
    with PackWriter(path, name="set", source="here", licence="CC0", gzip=kind == "gzip") as writer:
        pictures = random.integers(0, 256, (ROWS, 6, 5, 3)).astype(np.uint8)
        if kind == "encoded":
            writer.add_encoded([encode_png(p) for p in pictures], height=6, width=5, channels=3)
        else:
            writer.add_images(pictures)
        writer.set_text([f"text {k} é" for k in range(ROWS)])
        tokens = random.integers(0, 50, (ROWS, 5)).astype(np.int32)
        writer.set_tokens(tokens, tokenizer_json='{"a": 1}', pad_token=0, vocab_size=50)
        writer.set_label("kind", random.integers(-1, 3, ROWS).astype(np.int32), ["a", "b", "c"])
        writer.set_tabular("vitals", random.normal(size=(ROWS, 2)).astype(np.float32), ["x", "y"])
        writer.set_site(random.integers(0, 2, ROWS).astype(np.int32), ["north", "south"])
        writer.set_split(random.integers(0, 3, ROWS).astype(np.int8))
        writer.set_masks(random.integers(0, 2, (3, 6, 5)).astype(np.uint8), random.integers(-1, 3, ROWS))
        writer.set_present("text", random.random(ROWS) < 0.5)
        if kind == "gzip":
            counts = [1, 2, 0, 1, 3, 1, 1]
            texts = [[f"caption {k}.{j}" for j in range(count)] for k, count in enumerate(counts)]
            offsets = np.cumsum([0, *counts])
            writer.set_captions(texts, random.integers(0, 50, (int(offsets[-1]), 5)).astype(np.int32))
        writer.set_row_ids([f"r{k}" for k in range(ROWS)])


def _damage_structure(file: h5py.File, rng: random.Random) -> None:
    """An attribute or a dataset that is gone, or is something else."""
    paths: list[str] = []
    file.visit(paths.append)
    path = rng.choice(sorted(paths))
    holder = file if rng.random() < 0.4 else file[path]
    kind = rng.randrange(8)
    values: list[Any] = [0, -1, 2**40, 2.5, "x", "[]", '["a"]', "{}", "é" * 9, [1, 2], b"\xff\xfe", h5py.Empty("f"),
                         json.dumps(VALUES[:9]), "[" * 5000, np.zeros((2, 2))]  # fmt: skip
    if kind <= 1 and len(holder.attrs):
        holder.attrs[rng.choice(sorted(holder.attrs))] = rng.choice(values)
    elif kind == 2 and len(holder.attrs):
        del holder.attrs[rng.choice(sorted(holder.attrs))]
    elif kind == 3:
        del file[path]
    elif kind == 4:
        other = rng.choice(sorted(paths))
        if other != path and not path.startswith(other) and not other.startswith(path):
            del file[path]
            file[path] = file[other]
    elif kind == 5:
        del file[path]
        link = rng.choice([h5py.SoftLink("/"), h5py.SoftLink(f"/{path}"), h5py.ExternalLink("/etc/passwd", "/"),
                           h5py.ExternalLink("case.h5", "/row_id")])  # fmt: skip
        file[path] = link
    elif isinstance(file[path], h5py.Dataset):
        old = file[path]
        shape = list(old.shape or ())
        change = rng.randrange(4)
        if shape and change == 0:
            shape[rng.randrange(len(shape))] = rng.choice([0, 1, 2**20, 2**33, 2**50])
        elif change == 1:
            shape = shape[:-1] if rng.random() < 0.5 else [*shape, 3]
        dtype = old.dtype if change < 2 else np.dtype(rng.choice(["u1", "i8", "f4", "S3", "c8", "?", "V3"]))
        attrs = dict(old.attrs)
        del file[path]
        chunks = tuple(min(n, 4) or 1 for n in shape) if shape else None
        file.create_dataset(path, tuple(shape), dtype, chunks=chunks if all(shape) else None)
        for key, value in attrs.items():
            file[path].attrs[key] = value


class CheckpointFiles:
    """Checkpoints: which is the newest, what the loop, the shared blocks, the algorithm and the clients kept; whole
    ones and those of shards."""

    name = "checkpoint"
    declared = (ValueError,)

    def prepare(self, folder: Path) -> None:
        made = _checkpoints(folder / "whole")
        state = {"m": _blocks(2.0), "q": [0.5, None, "x"], "n": 3}
        clients = {3: {"model": _blocks(1.0), "t": torch.arange(4)}, 5: {"n": 2}}
        made.save(1, _blocks(0.0), {}, {}, {"versions": {}})
        made.save(2, _blocks(1.0), state, clients, {"versions": {"torch": "2"}, "ranks": 1})
        pieces = _checkpoints(folder / "pieces")
        pieces.save(4, _blocks(1.0, True), {"m": _blocks(2.0, True)}, {3: {"c": _blocks(3.0, True)}}, {})

    def damage(self, seeds: Path, folder: Path, rng: random.Random) -> None:
        kind = rng.choice(["whole", "pieces"])
        shutil.copytree(seeds / kind, folder / kind)
        for _ in range(rng.choice([1, 1, 2])):
            files = sorted(f for f in (folder / kind).rglob("*") if f.is_file())
            if not files:
                return
            path = rng.choice(files)
            change = rng.randrange(10)
            if change == 0:
                path.unlink()
            elif change == 1:
                path.write_bytes(rng.choice(files).read_bytes())
            elif change == 2:
                name = rng.choice(["round_x", "round_-1", "round_", "round_9" * 9])
                if not path.parent.with_name(name).exists():
                    path.parent.rename(path.parent.with_name(name))
            elif change <= 6 and path.suffix == ".json":
                path.write_text(_damaged_json(path.read_text(errors="replace"), rng), errors="replace")
            elif change <= 6:
                path.write_bytes(_damaged_safetensors(path.read_bytes(), rng))
            elif change == 7 and path.suffix == ".json":
                path.write_text(damaged_text(path.read_text(errors="replace"), rng), errors="replace")
            else:
                path.write_bytes(damaged_bytes(path.read_bytes(), rng))

    def exercise(self, folder: Path) -> None:
        for kind, sharded in (("whole", False), ("pieces", True)):
            if not (folder / kind).exists():
                continue
            made = _checkpoints(folder / kind)
            path = made.latest()
            if path is None:
                continue
            assert int(made.load_loop(path)["rounds_done"]) >= 0
            for like in (_blocks(0.0, sharded), _blocks(0.0, not sharded)):
                made.load_shared(path, like)
                made.load_algorithm(path, like)
                made.load_states(path, [3, 5], like)


def _damaged_json(text: str, rng: random.Random) -> str:
    try:
        return json.dumps(damaged_tree(json.loads(text), rng))
    except (ValueError, RecursionError):  # damaged already
        return damaged_text(text, rng)


def _checkpoints(folder: Path) -> Checkpoints:
    return Checkpoints(folder, 2, Collectives(Mesh(0, 1, 1, None), Ledger(), 1 << 20), torch.device("cpu"))


def _blocks(value: float, sharded: bool = False) -> dict[str, Block]:
    specs = (
        TensorSpec("w", (6,) if sharded else (2, 3), (1,) if sharded else (3, 1), 0, True),
        TensorSpec("b", (4,), (1,), 16, True),
        TensorSpec("s", (2,), (1,), 32, False),
    )
    pieces = (Piece((2, 3), 0), Piece((4,), 0), Piece((2,), 0)) if sharded else None
    block = Block(torch.zeros(48), Layout(specs, 48, 32, pieces))
    for spec in specs:
        block.view(spec).fill_(value)
    return {"net": block}


def _damaged_safetensors(data: bytes, rng: random.Random) -> bytes:
    """The header, whose lengths and names then hold together, or not."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = damaged_tree(json.loads(data[8 : 8 + length]), rng)
    except (ValueError, RecursionError):  # damaged already
        return damaged_bytes(data, rng)
    text = json.dumps(header).encode()
    size = len(text) if rng.random() < 0.9 else rng.choice([0, 2**63, len(text) + 1])
    return size.to_bytes(8, "little") + text + data[8 + length :]


class Configs:
    """load_config with overrides and `extends`, check, dump and reload."""

    name = "config"
    declared = (ConfigError,)

    def prepare(self, folder: Path) -> None:
        for path in sorted((ROOT / "configs").rglob("*.yaml")):
            if path.parent.name not in ("cluster", "downstream"):
                text = path.read_text(encoding="utf-8")
                (folder / f"{path.parent.name}_{path.name}").write_text(text, encoding="utf-8")

    def damage(self, seeds: Path, folder: Path, rng: random.Random) -> None:
        import yaml

        files = sorted(seeds.glob("*.yaml"))
        base = rng.choice(files).read_text(encoding="utf-8")
        change = rng.randrange(12)
        if change <= 4:
            text = damaged_text(base, rng)
        elif change <= 6:
            text = yaml.safe_dump(damaged_tree(yaml.safe_load(base), rng), allow_unicode=True)
        elif change <= 9:  # whole sections of another config: what no section knows of the others
            tree = yaml.safe_load(base)
            tree |= rng.choices(list(yaml.safe_load(rng.choice(files).read_text(encoding="utf-8")).items()), k=2)
            tree.pop("extends", None)
            text = yaml.safe_dump(tree, allow_unicode=True)
        elif change == 10:
            text = _bomb(rng) + base
        else:
            extends = rng.choice(["case.yaml", "base.yaml", ".", "/dev/zero", "\\0", "a" * 5000, "other.yaml", "~"])
            text = f'extends: "{extends}"\n' + damaged_text(base, rng)
        (folder / "base.yaml").write_text(base, encoding="utf-8")
        data = text.encode("utf-8", "surrogatepass")
        (folder / "case.yaml").write_bytes(damaged_bytes(data, rng) if rng.random() < 0.1 else data)
        keys = ["rounds", "name", "fit.steps", "algorithm", "algorithm.name", "~fit", "a.b", "", "data.phantom"]
        overrides = [
            f"{rng.choice(keys)}={rng.choice([*TOKENS, '1', '{}', '[1]'])}" for _ in range(max(0, rng.randrange(5) - 2))
        ]
        (folder / "overrides.json").write_text(json.dumps(overrides))

    def exercise(self, folder: Path) -> None:
        overrides = json.loads((folder / "overrides.json").read_text())
        config = load_config(folder / "case.yaml", overrides)
        check(config, world_size=2)
        (folder / "again.yaml").write_text(dump_config(config), encoding="utf-8")
        assert load_config(folder / "again.yaml") == config, "what is dumped is read back as something else"


def _bomb(rng: random.Random) -> str:
    """Aliases of aliases: little text, exponentially many values."""
    width, depth = rng.choice([2, 9]), rng.choice([3, 8, 30])
    lines = [f"bomb0: &b0 [{', '.join(['x'] * width)}]"]
    lines += [f"bomb{k}: &b{k} [{', '.join([f'*b{k - 1}'] * width)}]" for k in range(1, depth)]
    where = rng.choice(["model: {options: *b%d}", "name: *b%d", "evaluation: {match: *b%d}"]) % (depth - 1)
    return "\n".join([*lines, where, ""])


TARGETS = {target.name: target for target in (Hdf5(), CheckpointFiles(), Configs())}
