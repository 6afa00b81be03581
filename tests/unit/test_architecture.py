"""Imports point one way, only some places touch ranks and the environment, and documents link to files that exist."""

from __future__ import annotations

import ast
import re
from importlib.metadata import packages_distributions
from pathlib import Path
from urllib.parse import unquote

import pytest

from .architecture import ALLOWED, imports, violations

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "fedhpc"
SOURCES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("file", SOURCES)
def test_imports_point_one_way(file: str) -> None:
    found = violations(file, (PACKAGE / file).read_text(encoding="utf-8"))
    assert not found, "\n".join(found)


def test_rules_allow_no_circle() -> None:
    done: set[str] = set()
    while len(done) < len(ALLOWED):
        ready = {part for part, below in ALLOWED.items() if part not in done and below - {"__init__"} <= done}
        assert ready, f"these parts may import each other in a circle: {sorted(set(ALLOWED) - done)}"
        done |= ready


def test_every_import_is_declared_in_setup() -> None:
    """What fedhpc imports is in install_requires or an extra, so that a fresh clone can run it."""
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    strings = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    declared = {re.split(r"[<>=]", value)[0].lower() for value in strings if isinstance(value, str) and ">=" in value}
    installed = packages_distributions()
    missing = set()
    for file in SOURCES:
        for one in imports(file, (PACKAGE / file).read_text(encoding="utf-8")):
            top = one.module.split(".")[0]
            owners = {owner.lower().replace("_", "-") for owner in installed.get(top, [])}
            if owners and top != "fedhpc" and not owners & (declared | {"pydantic-core", "typing-extensions"}):
                missing.add(f"{file}:{one.line}: {top} (of {', '.join(sorted(owners))})")
    assert not missing, "not in setup.py: " + "; ".join(sorted(missing))


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("comm/sums.py", "from fedhpc.algorithms import fedavg", "comm must not import algorithms"),
        ("comm/sums.py", "from fedhpc import models", "comm must not import models"),
        ("comm/sums.py", "from ..models.blocks import cut", "comm must not import models"),
        ("comm/deep/er.py", "from ... import client", "comm must not import client"),
        ("algorithms/fedavg.py", "import fedhpc.client.engine as engine", "algorithms must not import client"),
        ("algorithms/fedavg.py", "def f():\n    import fedhpc.federation", "algorithms must not import federation"),
        ("client/client.py", "from fedhpc.algorithms.registry import make", "client must not import algorithms"),
        ("data/hdf5.py", "import importlib\nimportlib.import_module('fedhpc.client')", "data must not import client"),
        ("report/html.py", "from fedhpc.federation.rounds import run", "report must not import federation"),
        ("task.py", "from fedhpc.cli import main", "task must not import cli"),
        ("config/load.py", "import torch", "config must not import torch"),
        ("config/load.py", "def f():\n    from numpy import array", "config must not import numpy"),
        ("federation/rounds.py", "import torch.distributed as dist", "torch.distributed is for"),
        ("federation/rounds.py", "from torch import distributed", "torch.distributed is for"),
        ("federation/rounds.py", "from torch.distributed.device_mesh import x", "torch.distributed is for"),
        ("federation/rounds.py", "import torch\ntorch.distributed.barrier()", "torch.distributed is for"),
        ("client/engine.py", "import torch.distributed", "torch.distributed is for"),
        ("client/engine.py", "import deepspeed", "deepspeed is for"),
        ("data/hdf5.py", "import pickle", "pickle is for data/packers/cifar_batches.py"),
        ("data/hdf5.py", "import os\nx = os.environ['A']", "environment variables"),
        ("data/hdf5.py", "import os as o\nx = o.getenv('A')", "environment variables"),
        ("data/hdf5.py", "from os import path, environ", "environment variables"),
        ("novelty/x.py", "", "no rule for fedhpc.novelty"),
        ("novelty.py", "", "no rule for fedhpc.novelty"),
    ],
)
def test_checker_finds(file: str, source: str, complaint: str) -> None:
    found = violations(file, source)
    assert len(found) == 1, found
    assert complaint in found[0]
    assert found[0].startswith(file)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("comm/sums.py", "import torch.distributed as dist\nfrom fedhpc.comm import mesh\nfrom .mesh import Mesh"),
        ("client/zero.py", "import torch.distributed, deepspeed\nfrom fedhpc.comm.mesh import Mesh"),
        ("runtime.py", "import os, torch.distributed\nfrom fedhpc.comm import mesh\nos.environ"),
        ("algorithms/fedavg.py", "import torch\nfrom fedhpc.interfaces import Client\nfrom . import weighting"),
        ("federation/rounds.py", "from fedhpc.algorithms.registry import make\nfrom fedhpc.runtime import Runtime"),
        ("cli.py", "from fedhpc import __version__\nfrom fedhpc.task import RunTask"),
        ("config/load.py", "import torchless, os\nfrom fedhpc.config.schema import RunConfig\nos.path.join('a')"),
    ],
)
def test_checker_allows(file: str, source: str) -> None:
    assert violations(file, source) == []


# -------------------------------------------------------------------------------------------------------- documents
LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)>\s]+)>?[^)]*\)")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)


def broken_links(document: Path) -> list[str]:
    """Relative link targets of a markdown file that do not exist."""
    text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", document.read_text(encoding="utf-8")))
    targets = [target for target in LINK.findall(text) if not re.match(r"[a-z][a-z0-9+.-]*:|#", target)]
    return [target for target in targets if not (document.parent / unquote(target.partition("#")[0])).exists()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_point_to_files(document: Path) -> None:
    assert broken_links(document) == []


def test_link_checker_finds_broken_links(tmp_path: Path) -> None:
    (tmp_path / "here.md").touch()
    document = tmp_path / "doc.md"
    inline = "[a](here.md#x) [b](gone.md) ![c](<no.png>) [d](https://x.y/z) [e](#f) `[g](code.md)`"
    document.write_text(f"{inline}\n```\n[h](fence.md)\n```\n", encoding="utf-8")
    assert broken_links(document) == ["gone.md", "no.png"]
