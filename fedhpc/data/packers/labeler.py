"""The 14 labels of the CheXpert labeller (Irvin et al., AAAI 2019), as CheXpert and MIMIC-CXR-JPG publish them.

A cell is 1.0 (positive), 0.0 (negative), -1.0 (uncertain) or blank (not mentioned).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fedhpc.data.packers.source import BadRow, Row

FINDINGS = (
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia",
    "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture",
)  # fmt: skip
LABELS = ("No Finding", *FINDINGS, "Support Devices")

Uncertain = Literal["missing", "absent", "present", "class"]
Blank = Literal["missing", "absent"]
_CODES = {"1.0": "present", "1": "present", "0.0": "absent", "0": "absent", "-1.0": "uncertain", "-1": "uncertain"}


def column_of(label: str) -> str:
    """The label's name in the packed file: pleural_effusion."""
    return label.lower().replace(" ", "_")


@dataclass(frozen=True)
class LabelRule:
    """What uncertain and blank cells become: a missing label, a class of certain labels, or a class of their own."""

    uncertain: Uncertain = "missing"
    blank: Blank = "missing"

    @property
    def classes(self) -> tuple[str, ...]:
        return ("absent", "present", "uncertain") if self.uncertain == "class" else ("absent", "present")

    @property
    def note(self) -> str:
        """The rule in words, for the packed file's note."""
        return (
            f"Labels of the CheXpert labeller are absent or present; uncertain cells (-1) are "
            f"{'a class of their own' if self.uncertain == 'class' else self.uncertain}, blank cells (not mentioned) "
            f"are {self.blank}. primary_finding is the first present finding in the published order, Support Devices "
            "left out; No Finding where that is what is present; else missing."
        )

    def apply(self, cells: Mapping[str, str], row: Row) -> dict[str, str]:
        """Values of the 14 label columns and of primary_finding, from the 14 cells. Raises BadRow."""
        out: dict[str, str] = {}
        for label in LABELS:
            cell = cells.get(label, "")
            state = _CODES.get(cell) if cell else "blank"
            if state is None:
                raise BadRow("bad label", f"{row.where}: {label} is {cell!r}: 1.0, 0.0, -1.0 or blank were expected")
            out[column_of(label)] = self._value(state)
        present = [label for label in FINDINGS if _CODES.get(cells.get(label, "")) == "present"]
        healthy = _CODES.get(cells.get("No Finding", "")) == "present"
        out["primary_finding"] = present[0] if present else "No Finding" if healthy else ""
        return out

    def _value(self, state: str) -> str:
        if state == "blank":
            return "" if self.blank == "missing" else "absent"
        if state == "uncertain":
            return {"missing": "", "class": "uncertain"}.get(self.uncertain, self.uncertain)
        return state

    def label_classes(self) -> dict[str, tuple[str, ...]]:
        """TablePlan.classes of these columns."""
        return {column_of(label): self.classes for label in LABELS} | {"primary_finding": ("No Finding", *FINDINGS)}
