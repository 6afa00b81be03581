"""Who takes part, and the command line of each, relative to the repository root."""

from __future__ import annotations

from dataclasses import dataclass

FOLDER = "benchmarks/rounds"
PFL_PYTHON = "benchmarks/.venv-pfl/bin/python"


@dataclass(frozen=True)
class Cell:
    """One column of the table: a network and the precision that is asked for."""

    model: str
    precision: str

    def __str__(self) -> str:
        return f"{self.model} {self.precision}"


CELLS = (Cell("cnn", "float32"), Cell("cnn", "bfloat16"), Cell("tiny", "float32"))


@dataclass(frozen=True)
class Contender:
    """A script that prints one result line. `precisions` are those it runs in; others fall back to the first."""

    name: str
    script: str
    about: str
    python: str = "python"
    flags: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ("float32", "bfloat16")
    torchrun: bool = False

    def precision(self, cell: Cell) -> str:
        """The precision this contender runs in for `cell`."""
        return cell.precision if cell.precision in self.precisions else self.precisions[0]

    def command(self, cell: Cell, ranks: int, rounds: int, num_clients: int) -> list[str]:
        """The command line, to be started in the repository root."""
        start = [self.python]
        if self.torchrun and ranks > 1:
            start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        return [
            *start,
            f"{FOLDER}/{self.script}",
            *("--model", cell.model, "--ranks", str(ranks), "--rounds", str(rounds)),
            *("--precision", self.precision(cell), "--num-clients", str(num_clients)),
            *self.flags,
        ]


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("bare", "bare.py", "the bare tuned loop: SGD alone, no federation"),
        Contender(
            "bare_heap", "bare.py", "bare, and freed memory stays in the process (mallopt)", flags=("--keep-heap",)
        ),
        Contender(
            "pfl",
            "pfl_peer.py",
            "pfl-research with its own benchmark's settings, always float32",
            python=PFL_PYTHON,
            precisions=("float32",),
            torchrun=True,
        ),
        Contender(
            "pfl_tuned",
            "pfl_peer.py",
            "pfl-research with fused SGD, channels_last weights, its autocast and mallopt",
            python=PFL_PYTHON,
            flags=("--tuned",),
            torchrun=True,
        ),
        Contender("fedhpc", "fedhpc_run.py", "fedhpc"),
    )
}


def choose(names: str) -> list[Contender]:
    """Contenders of a comma-separated list.

    Raises: ValueError for a name that is unknown or given twice.
    """
    chosen = names.split(",")
    for name in chosen:
        if name not in CONTENDERS:
            raise ValueError(f"--contenders names {name!r}, which is none of {', '.join(CONTENDERS)}")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"--contenders {names} names one twice; set each once (--repetitions repeats them)")
    return [CONTENDERS[name] for name in chosen]


def choose_cells(models: str, precisions: str) -> list[Cell]:
    """Cells of CELLS whose model and precision are in the comma-separated lists.

    Raises: ValueError for an unknown model or precision, or when nothing is left.
    """
    for option, given, known in (
        ("--models", models.split(","), {cell.model for cell in CELLS}),
        ("--precisions", precisions.split(","), {cell.precision for cell in CELLS}),
    ):
        for name in given:
            if name not in known:
                raise ValueError(f"{option} names {name!r}, which is none of {', '.join(sorted(known))}")
    cells = [cell for cell in CELLS if cell.model in models.split(",") and cell.precision in precisions.split(",")]
    if not cells:
        raise ValueError(f"--models {models} with --precisions {precisions} leaves nothing; choose from {CELLS}")
    return cells
