"""Who may import what (DESIGN.md, Layout): the rules and the checker, apart from the tests that apply them."""

from __future__ import annotations

import ast
import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

# Part of fedhpc -> parts that it may import, besides itself. Every part must be listed; a new one fails until it is.
BELOW_FEDERATION = frozenset({"interfaces", "config", "data", "models", "metrics", "client", "comm", "algorithms"})
ALLOWED: Mapping[str, frozenset[str]] = {
    "__init__": frozenset(),
    "exit_codes": frozenset(),
    "process": frozenset(),  # what a process does to itself
    "environment": frozenset(),  # the table of launcher variables
    "interfaces": frozenset(),
    "config": frozenset(),
    "metrics": frozenset({"interfaces"}),
    "comm": frozenset({"interfaces", "exit_codes"}),  # tensors and ranks, never a model or an algorithm
    "data": frozenset({"interfaces", "config"}),
    "models": frozenset({"interfaces", "config"}),
    "algorithms": frozenset({"interfaces", "config", "metrics"}),
    "client": frozenset({"interfaces", "config", "data", "models", "metrics", "comm"}),
    "completion": frozenset({"interfaces", "config", "data", "models", "client"}),
    "privacy": frozenset({"interfaces", "config", "comm"}),
    "runtime": frozenset({"interfaces", "config", "comm", "environment", "process"}),
    "report": frozenset({"interfaces", "config", "metrics"}),
    "spawn": frozenset({"runtime", "process", "exit_codes"}),  # starts processes, knows nothing of what they run
    "federation": BELOW_FEDERATION | {"privacy", "runtime", "report"},
    "run_folder": frozenset({"config"}),
    "population": BELOW_FEDERATION | {"completion", "report"},
    "examples": BELOW_FEDERATION | {"completion", "federation", "population"},
    "build": BELOW_FEDERATION | {"completion", "privacy", "runtime", "report", "federation", "population", "examples"},
    "task": BELOW_FEDERATION
    | {"privacy", "process", "runtime", "report", "run_folder", "federation", "population", "build"},
    "downstream": BELOW_FEDERATION | {"runtime", "report", "federation"},
    "export_card": frozenset({"config", "data", "downstream", "models"}),
    "export": BELOW_FEDERATION | {"runtime", "report", "federation", "downstream", "export_card"},
    "launching": frozenset({"config", "report", "run_folder", "environment", "exit_codes", "runtime", "comm", "task"}),
    "cli_shared": frozenset({"config", "data", "models"}),
    "cli_launch": frozenset({"cli_shared", "config", "launching", "report", "run_folder"}),
    "cli_complete": frozenset({"cli_shared", "completion"}),
    "doctor": frozenset({"config", "data", "comm", "runtime"}),
    "planning": BELOW_FEDERATION | {"runtime", "federation", "build", "task", "spawn"},
    "cli_machine": frozenset({"cli_shared", "config", "data", "environment", "runtime", "spawn", "doctor", "planning"}),
    "cli": BELOW_FEDERATION
    | {
        "runtime",
        "process",
        "exit_codes",
        "report",
        "spawn",
        "run_folder",
        "federation",
        "task",
        "downstream",
        "export",
    }
    | {"cli_shared", "cli_launch", "cli_machine", "cli_complete"},
    "__main__": frozenset({"cli"}),
}

# Module -> files of fedhpc that alone may import it.
ONLY_IN: Mapping[str, tuple[str, ...]] = {
    "torch.distributed": ("comm/*.py", "client/zero*.py", "runtime.py"),
    "deepspeed": ("client/zero*.py",),
    "pickle": ("data/packers/cifar_batches.py",),  # runs nothing that a pickle names: see there
}
# Part -> modules that it must not import: `fedhpc check` answers in under a second on a login node.
NEVER_IN: Mapping[str, frozenset[str]] = {
    "config": frozenset({"torch", "torchvision", "timm", "transformers", "numpy", "h5py", "pandas", "matplotlib"}),
}
ENVIRONMENT = frozenset({"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"})
ENVIRONMENT_ONLY_IN = ("runtime.py",)


@dataclass(frozen=True)
class Import:
    """One imported module (or a name in one), in full, with its line."""

    module: str
    line: int


def part_of(file: str) -> str:
    """The part of fedhpc that a file (path inside the package) belongs to: its top folder, or its own name."""
    return Path(file).parts[0].removesuffix(".py")


def imports(file: str, source: str) -> Iterator[Import]:
    """Every import in a file, at any depth, relative ones resolved. `from a import b` counts as `a` and as `a.b`."""
    package = ["fedhpc", *Path(file).parts[:-1]]
    for node in ast.walk(ast.parse(source, file)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield Import(module, node.lineno)
            for alias in node.names:
                yield Import(f"{module}.{alias.name}", node.lineno)
        elif _names_a_module(node):
            assert isinstance(node, ast.Call) and isinstance(node.args[0], ast.Constant)
            yield Import(str(node.args[0].value), node.lineno)
        elif isinstance(node, ast.Attribute) and _dotted(node) in ONLY_IN:
            yield Import(_dotted(node), node.lineno)  # `import torch` and then torch.distributed.all_reduce


def violations(file: str, source: str) -> list[str]:
    """What a file (path inside the package) does against the rules, one line each."""
    part = part_of(file)
    if part not in ALLOWED:
        return [f"{file}: no rule for fedhpc.{part}; add it to ALLOWED in tests/unit/architecture.py"]
    found = []
    for one in imports(file, source):
        where = f"{file}:{one.line}"
        names = one.module.split(".")
        if names[0] == "fedhpc":
            other = names[1] if len(names) > 1 else "__init__"
            known = ALLOWED[part] | {part, "__init__"}
            if other in ALLOWED and other not in known:
                found.append(f"{where}: {part} must not import {other}")
        for module, places in ONLY_IN.items():
            if _inside(one.module, module) and not _matches(file, places):
                found.append(f"{where}: {module} is for {', '.join(places) or 'nobody'} only")
        found += [
            f"{where}: {part} must not import {module}"
            for module in sorted(NEVER_IN.get(part, ()))
            if _inside(one.module, module)
        ]
    if not _matches(file, ENVIRONMENT_ONLY_IN):
        found += [
            f"{file}:{line}: environment variables are read in {', '.join(ENVIRONMENT_ONLY_IN)} only"
            for line in environment_uses(file, source)
        ]
    return list(dict.fromkeys(found))


def environment_uses(file: str, source: str) -> list[int]:
    """Lines that touch the process environment, under whatever name `os` was imported."""
    tree = ast.parse(source, file)
    os_names = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "os"
    }
    lines = []
    for node in ast.walk(tree):
        by_attribute = isinstance(node, ast.Attribute) and node.attr in ENVIRONMENT and _dotted(node.value) in os_names
        by_name = (
            isinstance(node, ast.ImportFrom)
            and node.module == "os"
            and any(alias.name in ENVIRONMENT | {"*"} for alias in node.names)
        )
        if by_attribute or by_name:
            lines.append(getattr(node, "lineno", 0))
    return lines


def _names_a_module(node: ast.AST) -> bool:
    """importlib.import_module("x") and __import__("x")."""
    return (
        isinstance(node, ast.Call)
        and _dotted(node.func).rpartition(".")[2] in ("import_module", "__import__")
        and bool(node.args)
        and isinstance(node.args[0], ast.Constant)
    )


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return "?"


def _inside(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def _matches(file: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(file, pattern) for pattern in patterns)
