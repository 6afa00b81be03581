"""COVIDx (Wang, Lin, Wong, Scientific Reports 2020): chest X-rays of public collections in the lists of COVID-Net.

Folder: train_COVIDx*.txt and test_COVIDx*.txt (lines "patient filename class source"), pictures in train/ and test/.
"""

from __future__ import annotations

import re
from pathlib import Path

from fedhpc.data.packers.official import Options, carve_val, converted, find_file, thin, with_values
from fedhpc.data.packers.source import BadRow, Row, Skipped
from fedhpc.data.packers.table import PackReport, TablePlan, pack_rows

_SOURCE = (
    "COVIDx {version} (Wang, Lin, Wong, Scientific Reports 2020, github.com/lindawangg/COVID-Net), made from: {sources}"
)
_LICENCE = "each source's own terms (see docs/COVIDx.md of COVID-Net); the RSNA part is non-commercial"
_CURE = (
    "give the folder with train_COVIDx*.txt, test_COVIDx*.txt, train/ and test/ (the lists lie in labels/ of "
    "COVID-Net), or name the lists with --train-list and --test-list"
)
_THREE = ("normal", "pneumonia", "COVID-19")
_TWO = ("negative", "positive")


def pack_covidx(
    folder: Path, out: Path, options: Options, *, val_fraction: float = 0.1, train_list: Path | None = None,
    test_list: Path | None = None,
) -> PackReport:  # fmt: skip
    """Pack the official train and test lists; `val_fraction` of the training patients, drawn by hash, are val.

    Training rows of a patient who is in the test list as well are left out and counted. Site is the source.
    Raises ValueError, FileNotFoundError.
    """
    skipped = Skipped(options.skip_bad)
    lists = {
        "train": train_list or find_file(folder, ("train_COVIDx*.txt", "train.txt"), _CURE),
        "test": test_list or find_file(folder, ("test_COVIDx*.txt", "test.txt"), _CURE),
    }
    rows = [row for split, path in lists.items() for row in _lines(path, folder, split, skipped)]
    tested = {row.values["patient"] for row in rows if row.values["split"] == "test"}
    kept = [row for row in rows if row.values["split"] == "test" or row.values["patient"] not in tested]
    left_out = len(rows) - len(kept)
    classes = _classes(rows, lists["train"])

    def convert(row: Row) -> Row:
        if row.values["class"] not in classes:
            raise BadRow("unknown class", f"{row.where}: class is {row.values['class']!r}: one of "
                         f"{', '.join(classes)} was expected")  # fmt: skip
        patient = row.values["patient"]
        split = carve_val(row.values["split"], patient, val_fraction, options.random_seed)
        return with_values(row, {"split": split})

    rows = converted(thin(kept, options.limit), convert, skipped)
    if not rows:
        raise ValueError(f"{lists['train']}: every row was dropped ({dict(skipped.counts)}); nothing is left to pack")
    found = re.search(r"COVIDx_?(.*)$", lists["train"].stem)
    version = f"v{found.group(1)}" if found else "(version not in the list's name)"
    sources = ", ".join(sorted({row.values["site"] for row in rows}))
    plan = TablePlan(
        table=lists["train"], out=out, name="covidx", source=_SOURCE.format(version=version, sources=sources),
        licence=_LICENCE, version=version,
        note=f"Official train and test; {val_fraction:g} of the training patients, drawn by hash (seed "
        f"{options.random_seed}), are val. {left_out} training rows of patients who are in the official test list as "
        "well were left out. Sites are the collections; their labels differ, so a model can tell class by source.",
        channels=1, image_column="path", image_root=folder, labels=("class",), classes={"class": classes},
        site_column="site", patient_column="patient", id_column="path", split_column="split", **options.plan(),
    )  # fmt: skip
    return pack_rows(rows, plan, skipped)


def _lines(path: Path, folder: Path, split: str, skipped: Skipped) -> list[Row]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: {_CURE}")
    rows: list[Row] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                rows.append(_line(line.split(), f"{path}, line {number}", len(rows), folder, split))
            except BadRow as error:
                skipped.take(error)
    if not rows:
        raise ValueError(f"{path} has no lines 'patient filename class source': {_CURE}")
    return rows


def _line(words: list[str], where: str, index: int, folder: Path, split: str) -> Row:
    """A line; names of patients and files may hold blanks, then the file that exists tells where the name begins."""
    if len(words) < 4:
        raise BadRow("bad line", f"{where}: {len(words)} words: patient, filename, class and source were expected")
    *names, kind, source = words
    cuts = [cut for cut in range(1, len(names)) if (folder / split / " ".join(names[cut:])).is_file()]
    cut = cuts[0] if cuts else 1
    return Row(
        {
            "patient": f"{source}:{' '.join(names[:cut])}", "path": f"{split}/{' '.join(names[cut:])}", "class": kind,
            "site": source, "split": split,
        },
        where, index,
    )  # fmt: skip


def _classes(rows: list[Row], path: Path) -> tuple[str, ...]:
    """Three classes, or the two of the binary lists."""
    found = {row.values["class"] for row in rows}
    if not found & set(_THREE) and not found & set(_TWO):
        raise ValueError(f"{path}: classes are {', '.join(sorted(found))}: {', '.join(_THREE)}, or {', '.join(_TWO)} "
                         "were expected")  # fmt: skip
    return _THREE if found & set(_THREE) else _TWO
