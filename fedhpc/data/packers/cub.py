"""CUB-200-2011 (Wah et al., Caltech 2011): birds, 200 species, with the ten captions of Reed et al. (CVPR 2016).

Folder: CUB_200_2011/ with images.txt, classes.txt, image_class_labels.txt, train_test_split.txt and images/; captions
in text_c10/<class>/<picture>.txt of cvpr2016_cub.
"""

from __future__ import annotations

from pathlib import Path

from fedhpc.data.packers.captions import CAPTIONS, caption_note, cells_of, find_captions, read_captions
from fedhpc.data.packers.official import Options, TextOptions, carve_val, converted, hash_split, thin
from fedhpc.data.packers.source import Row, Skipped
from fedhpc.data.packers.table import PackReport, TablePlan, pack_rows

Fractions = tuple[float, float, float]

_SOURCE = "CUB-200-2011 (Wah, Branson, Welinder, Perona, Belongie, Caltech CNS-TR-2011-001)"
_CAPTIONS = CAPTIONS.format(archive="cvpr2016_cub")
_LICENCE = "non-commercial research and education; the pictures are their photographers'"
_LISTS = ("images.txt", "classes.txt", "image_class_labels.txt", "train_test_split.txt")
_CURE = (
    f"give the folder CUB_200_2011 with {', '.join(_LISTS)} and images/ (CUB_200_2011.tgz of "
    "https://www.vision.caltech.edu/datasets/cub_200_2011/), or the one above it"
)


def pack_cub(
    folder: Path, out: Path, options: Options, text: TextOptions | None, *, captions: Path | None = None,
    caption: int | None = 1, val_fraction: float = 0.1, split: Fractions | None = None,
) -> PackReport:  # fmt: skip
    """Pack all pictures, official train and test; `val_fraction` of the training pictures, drawn by hash, are val.

    text: None leaves captions out. captions: their folder; None looks beside the pictures. caption: which of them is a
    row's text, from 1; None: all in one. split: fractions drawn by a hash of the picture, instead of the official one.
    Raises ValueError, FileNotFoundError.
    """
    root = _root(folder)
    rows = _rows(root)
    classes = [_species(name) for name in _list(root / "classes.txt").values()]
    skipped = Skipped(options.skip_bad)
    first = Path(rows[0].values["path"]).with_suffix(".txt").as_posix()
    where = None
    if text is not None:
        where = find_captions(
            captions, (folder, root, root.parent), ("cvpr2016_cub", "birds"), first,
            f"they are the {_CAPTIONS}; set --captions to that folder, or --no-text",
        )  # fmt: skip

    def convert(row: Row) -> Row:
        path, official = row.values["path"], row.values["split"]
        drawn = (
            hash_split(path, split, options.random_seed)
            if split
            else carve_val(official, path, val_fraction, options.random_seed)
        )
        cells = {**row.values, "split": drawn}
        if where is not None:
            own = read_captions(where / Path(path).with_suffix(".txt"), row.where)
            cells |= cells_of(own, caption, row.where)
        return Row(cells, row.where, row.index)

    rows = converted(thin(rows, options.limit), convert, skipped)
    if not rows:
        raise ValueError(f"{root}: every row was dropped ({dict(skipped.counts)}); nothing is left to pack")
    note = split_note(split, val_fraction, options.random_seed) + (caption_note(caption) if text else "")
    plan = TablePlan(
        table=root / "images.txt", out=out, name="cub-200", source=f"{_SOURCE}{f'; {_CAPTIONS}' if text else ''}",
        licence=_LICENCE, version="2011", note=note, channels=3,
        image_column="path", image_root=root / "images", labels=("species",), classes={"species": classes},
        id_column="path", split_column="split", captions_column="captions" if text else None, **options.plan(),
        **(text.plan("caption") if text else {}),
    )  # fmt: skip
    return pack_rows(rows, plan, skipped)


def split_note(split: Fractions | None, val_fraction: float, random_seed: int) -> str:
    """How the split of a picture set was made."""
    if split:
        return (
            f"Split {','.join(map(str, split))} drawn by a hash of the picture, seed {random_seed}; not the official."
        )
    return (
        f"Official train and test; {val_fraction:g} of the training pictures, drawn by a hash of the picture (seed "
        f"{random_seed}), are val."
    )


def _root(folder: Path) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder: {_CURE}")
    root = next((path for path in (folder, folder / "CUB_200_2011") if (path / "images.txt").is_file()), None)
    if root is None:
        raise FileNotFoundError(f"{folder} holds no images.txt: {_CURE}")
    missing = [name for name in (*_LISTS, "images") if not (root / name).exists()]
    if missing:
        raise FileNotFoundError(f"{root} lacks {', '.join(missing)}: {_CURE}")
    return root


def _list(path: Path) -> dict[str, str]:
    """A list of CUB: "<id> <value>" lines. Raises ValueError."""
    out: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        key, _, value = line.strip().partition(" ")
        if not key.isdecimal() or not value.strip() or key in out:
            raise ValueError(f"{path}, line {number}: {line!r}: a new number and a value were expected: {_CURE}")
        out[key] = value.strip()
    if not out:
        raise ValueError(f"{path} is empty: {_CURE}")
    return out


def _rows(root: Path) -> list[Row]:
    images, names, labels, splits = (_list(root / name) for name in _LISTS)
    rows: list[Row] = []
    for key, path in images.items():
        where = f"{root / 'images.txt'}, picture {key}"
        if labels.get(key) not in names:
            raise ValueError(f"{where}: image_class_labels.txt gives the class {labels.get(key)}, which classes.txt "
                             f"lacks: {_CURE}")  # fmt: skip
        if splits.get(key) not in ("0", "1"):
            raise ValueError(f"{where}: train_test_split.txt gives {splits.get(key)}: 0 or 1 was expected: {_CURE}")
        values = {
            "path": path, "species": _species(names[labels[key]]), "split": "train" if splits[key] == "1" else "test",
        }  # fmt: skip
        rows.append(Row(values, where, len(rows)))
    return rows


def _species(name: str) -> str:
    """001.Black_footed_Albatross is the Black footed Albatross."""
    return name.partition(".")[2].replace("_", " ") or name
