"""BRSET 1.0.x (Nakayama et al., PLOS Digital Health 2024) and mBRSET 1.0 (Wu et al., 2024): fundus photographs, Brazil.

BRSET: labels_brset.csv, fundus_photos/<image_id>.jpg. mBRSET: labels_mbrset.csv, images/<file>.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from fedhpc.data.packers.official import Options, TextOptions, code_of, converted, find_file, hash_split, thin
from fedhpc.data.packers.source import BadRow, Row, Skipped, read_table, require_columns
from fedhpc.data.packers.table import PackReport, TablePlan, pack_rows

Fractions = tuple[float, float, float]

_SOURCES = {
    "brset": "BRSET 1.0 (Nakayama et al., PhysioNet, doi:10.13026/xcxw-8198; PLOS Digital Health 2024), Sao Paulo",
    "mbrset": "mBRSET 1.0 (Wu, Restrepo, Nakayama et al., PhysioNet; medRxiv 2024.07.11.24310293), Brazil",
}
_LICENCE = "PhysioNet Credentialed Health Data License 1.5.0: credentialed users only, no sharing, this file included"
GRADES = ("none", "mild", "moderate", "severe", "proliferative")  # 0-4: ICDR, and SDRG by analogy
DISEASES = (
    "diabetic_retinopathy", "macular_edema", "scar", "nevus", "amd", "vascular_occlusion", "hypertensive_retinopathy",
    "drusens", "hemorrhage", "retinal_detachment", "myopic_fundus", "increased_cup_disc", "other",
)  # fmt: skip
_YES = {"1": "present", "0": "absent", "yes": "present", "no": "absent"}
_NORMAL = {"1": "normal", "2": "abnormal"}
_GRADE = {str(grade): name for grade, name in enumerate(GRADES)}
_EYE = {"1": "right", "2": "left", "right": "right", "left": "left"}
_QUALITY = {"adequate": "adequate", "inadequate": "inadequate", "yes": "adequate", "no": "inadequate"}
_STATES = ("absent", "present")
_CODES: Mapping[str, Mapping[str, tuple[str, Mapping[str, str]]]] = {  # label -> column, names of its codes
    "brset": {
        **{name: (name, _YES) for name in DISEASES}, "dr_icdr": ("DR_ICDR", _GRADE), "dr_sdrg": ("DR_SDRG", _GRADE),
        **{name: (name, _NORMAL) for name in ("optic_disc", "vessels", "macula", "focus", "image_field", "artifacts")},
        "illumination": ("Illuminaton", _NORMAL), "quality": ("quality", _QUALITY),
        "sex": ("patient_sex", {"1": "M", "2": "F"}), "eye": ("exam_eye", _EYE), "diabetes": ("diabetes", _YES),
    },
    "mbrset": {
        "dr_icdr": ("final_icdr", _GRADE), "macular_edema": ("final_edema", _YES),
        "artifacts": ("final_artifacts", _YES), "quality": ("final_quality", _QUALITY),
        "sex": ("sex", {"1": "M", "0": "F"}), "eye": ("laterality", _EYE),
    },
}  # fmt: skip
_OTHERS = {
    "brset": {"picture": "image_id", "patient": "patient_id", "age": "patient_age", "site": "camera"},
    "mbrset": {"picture": "file", "patient": "patient", "age": "age"},
}
# Column of 1.0.0 -> names that other releases give it.
_ALIASES = {"Illuminaton": ("illumination", "iluminaton", "Ilumination"), "drusens": ("drusen",)}
_LAYOUT = {"brset": ("labels_brset.csv", "fundus_photos"), "mbrset": ("labels_mbrset.csv", "images")}


def pack_retina(
    name: str, folder: Path, out: Path, options: Options, text: TextOptions | None, *,
    split: Fractions = (0.7, 0.1, 0.2),
) -> PackReport:  # fmt: skip
    """Pack `brset` or `mbrset`, split by a hash of the patient: neither publishes a split.

    text: makes a template sentence from the labels; None leaves text out. Raises ValueError, FileNotFoundError.
    """
    file, images = _LAYOUT[name]
    table = find_file(folder, (file,), f"give the folder of {name} that holds {file} and {images}/")
    if not (folder / images).is_dir():
        raise FileNotFoundError(f"{folder} holds no folder {images}: give the folder with {file} and {images}/")
    raw = _renamed(read_table(table))
    codes, others = _CODES[name], _OTHERS[name]
    require_columns(table, raw, [(name, column) for column in (*others.values(), *(c for c, _ in codes.values()))])
    skipped, odd = Skipped(options.skip_bad), Counter[str]()

    def convert(row: Row) -> Row:
        return _row(row, name, odd, split, options.random_seed)

    rows = converted(thin(raw, options.limit), convert, skipped)
    if not rows:
        raise ValueError(f"{table}: every row was dropped ({dict(skipped.counts)}); nothing is left to pack")
    labels = (*codes, *(("camera",) if name == "brset" else ()), *(("text_kind",) if text else ()))
    plan = TablePlan(
        table=table, out=out, name=name, source=_SOURCES[name], licence=_LICENCE, version="1.0",
        note=_note(name, text is not None, odd, split, options.random_seed), channels=3, image_column="path",
        image_root=folder / images, labels=labels, classes=_classes(codes),
        tabular={"demographics": ("sex_male", "age")}, site_column="site", patient_column="patient",
        id_column="picture", split_column="split", **options.plan(), **(text.plan("text") if text else {}),
    )  # fmt: skip
    return pack_rows(rows, plan, skipped)


def _renamed(rows: list[Row]) -> list[Row]:
    """The rows under the column names of 1.0.0."""
    has = rows[0].values
    names = {alias: name for name, aliases in _ALIASES.items() if name not in has for alias in aliases if alias in has}
    if not names:
        return rows
    return [Row({names.get(k, k): v for k, v in row.values.items()}, row.where, row.index) for row in rows]


def _row(row: Row, name: str, odd: Counter[str], split: Fractions, random_seed: int) -> Row:
    cell, others = row.values, _OTHERS[name]
    values: dict[str, str] = {}
    for label, (column, names) in _CODES[name].items():
        value = code_of(cell[column], names) if cell[column] else ""
        if value is None:  # the archives hold a few codes outside their own codebook
            odd[f"{column} {cell[column]!r}"] += 1
        values[label] = value or ""
    picture = cell[others["picture"]]
    if not picture:
        raise BadRow("no picture", f"{row.where}: {others['picture']} is empty, and no picture is named: fill it in")
    patient = cell[others["patient"]].removesuffix(".0")
    values |= {
        "picture": picture, "path": picture if Path(picture).suffix.lower() in (".jpg", ".jpeg") else f"{picture}.jpg",
        "patient": patient, "age": cell[others["age"]], "sex_male": {"M": "1", "F": "0"}.get(values["sex"], ""),
        "site": cell[others["site"]] if "site" in others else "mbrset_handheld",
        "camera": cell.get("camera", ""), "split": hash_split(patient, split, random_seed),
        "text_kind": "template_from_labels",
    }  # fmt: skip
    return Row({**values, "text": template(values)}, row.where, row.index)


def template(values: Mapping[str, str]) -> str:
    """A sentence made from the labels. It is no report, and states nothing that the labels do not."""
    who = {"M": "male ", "F": "female "}.get(values["sex"], "")
    age = values["age"].removesuffix(".0")
    eye = f"the {values['eye']}" if values["eye"] else "an"
    head = f"Fundus photograph of {eye} eye of a {f'{age} year old ' if age else ''}{who}patient."
    found = [name.replace("_", " ") for name in DISEASES[1:] if values.get(name) == "present"]
    if values["dr_icdr"] not in ("", "none"):
        found.insert(0, f"{values['dr_icdr']} diabetic retinopathy")
    elif values.get("diabetic_retinopathy") == "present":
        found.insert(0, "diabetic retinopathy")
    if not found and not values["dr_icdr"]:
        return f"{head} Not graded."
    return f"{head} Findings: {', '.join(found) if found else 'no listed disease'}."


def _classes(codes: Mapping[str, tuple[str, Mapping[str, str]]]) -> dict[str, tuple[str, ...]]:
    ordered = {id(_YES): _STATES, id(_GRADE): GRADES}
    return {
        label: ordered.get(id(names)) or tuple(dict.fromkeys(names.values())) for label, (_, names) in codes.items()
    }


def _note(name: str, has_text: bool, odd: Counter[str], split: Fractions, random_seed: int) -> str:
    parts = [f"Colour. Split {','.join(map(str, split))} drawn by a hash of the patient, seed {random_seed}."]
    if has_text:
        parts.append("TEXT IS TEMPLATE TEXT made from the labels (label column text_kind), not reports: never score "
                     "retrieval on it as if it were.")  # fmt: skip
    parts.append("Sites are the two cameras: the archive does not say which of its three centres took a picture."
                 if name == "brset" else "One site: all pictures come from one handheld camera.")  # fmt: skip
    parts.append("dr_icdr is the ICDR grade 0-4. sex_male is 1 or 0.")
    if odd:
        cells = ", ".join(f"{cell} ({count})" for cell, count in sorted(odd.items()))
        parts.append(f"Codes outside the codebook are missing: {cells}.")
    return " ".join(parts)
