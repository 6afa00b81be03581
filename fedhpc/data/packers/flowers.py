"""Oxford 102 Flowers (Nilsback and Zisserman, ICVGIP 2008), with the ten captions of Reed et al. (CVPR 2016).

Folder: jpg/image_00001.jpg, ..., imagelabels.mat and setid.mat; captions in text_c10/class_00001/image_06734.txt of
cvpr2016_flowers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedhpc.data.packers.captions import CAPTIONS, caption_note, cells_of, find_captions, read_captions
from fedhpc.data.packers.cub import split_note
from fedhpc.data.packers.official import Options, TextOptions, converted, hash_split, thin
from fedhpc.data.packers.source import Row, Skipped
from fedhpc.data.packers.table import PackReport, TablePlan, pack_rows

Fractions = tuple[float, float, float]

_SOURCE = "Oxford 102 Flowers (Nilsback and Zisserman, ICVGIP 2008)"
_CAPTIONS = CAPTIONS.format(archive="cvpr2016_flowers")
_LICENCE = "none stated: research; the pictures are their photographers'"
_SETS = {"trnid": "train", "valid": "val", "tstid": "test"}
_CURE = (
    "give the folder with jpg/ (102flowers.tgz), imagelabels.mat and setid.mat of "
    "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
)


def pack_flowers(
    folder: Path, out: Path, options: Options, text: TextOptions | None, *, captions: Path | None = None,
    caption: int | None = 1, split: Fractions | None = None,
) -> PackReport:  # fmt: skip
    """Pack all pictures, official train, val and test (10, 10 and 20 to 238 pictures a species).

    text, captions, caption, split: as for CUB. Raises ValueError, FileNotFoundError.
    """
    from torchvision.datasets import Flowers102  # the archive has no names of its 102 classes

    classes = list(Flowers102.classes)
    root = _root(folder)
    rows = _rows(root, classes)
    skipped = Skipped(options.skip_bad)
    where = None
    if text is not None:
        where = find_captions(
            captions, (folder, root, root.parent), ("cvpr2016_flowers", "flowers"), rows[0].values["captions_file"],
            f"they are the {_CAPTIONS}; set --captions to that folder, or --no-text",
        )  # fmt: skip

    def convert(row: Row) -> Row:
        cells = dict(row.values)
        if split:
            cells["split"] = hash_split(cells["path"], split, options.random_seed)
        if where is not None:
            cells |= cells_of(read_captions(where / cells["captions_file"], row.where), caption, row.where)
        return Row(cells, row.where, row.index)

    rows = converted(thin(rows, options.limit), convert, skipped)
    if not rows:
        raise ValueError(f"{root}: every row was dropped ({dict(skipped.counts)}); nothing is left to pack")
    plan = TablePlan(
        table=root / "imagelabels.mat", out=out, name="flowers-102",
        source=f"{_SOURCE}{f'; {_CAPTIONS}' if text else ''}", licence=_LICENCE,
        note=(split_note(split, 0, options.random_seed) if split else "Official train, val and test.")
        + (caption_note(caption) if text else ""),
        channels=3,
        image_column="path", image_root=root / "jpg", labels=("species",), classes={"species": classes},
        id_column="path", split_column="split", captions_column="captions" if text else None, **options.plan(),
        **(text.plan("caption") if text else {}),
    )  # fmt: skip
    return pack_rows(rows, plan, skipped)


def _root(folder: Path) -> Path:
    """The folder, or flowers-102 in it, as torchvision unpacks it."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder: {_CURE}")
    root = folder / "flowers-102" if (folder / "flowers-102").is_dir() else folder
    missing = [name for name in ("jpg", "imagelabels.mat", "setid.mat") if not (root / name).exists()]
    if missing:
        raise FileNotFoundError(f"{root} lacks {', '.join(missing)}: {_CURE}")
    return root


def _matlab(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Vectors of integers from a MATLAB file."""
    from scipy.io import loadmat

    try:
        content = loadmat(path, variable_names=names)
    except Exception as error:  # scipy raises its own, struct's and zlib's
        raise ValueError(f"{path} is not a readable MATLAB file ({error}): download it again") from error
    out = {}
    for name in names:
        if name not in content or content[name].dtype.kind not in "iuf":
            raise ValueError(f"{path} lacks the numbers {name}: {_CURE}")
        out[name] = content[name].reshape(-1).astype(np.int64)
    return out


def _rows(root: Path, classes: list[str]) -> list[Row]:
    labels = _matlab(root / "imagelabels.mat", ("labels",))["labels"]
    ids = _matlab(root / "setid.mat", tuple(_SETS))
    if labels.size == 0 or not 1 <= int(labels.min()) <= int(labels.max()) <= len(classes):
        raise ValueError(f"{root / 'imagelabels.mat'}: labels must lie in 1..{len(classes)}: {_CURE}")
    every = np.sort(np.concatenate(list(ids.values())))
    if not np.array_equal(every, np.arange(1, len(labels) + 1)):
        raise ValueError(f"{root / 'setid.mat'} must name each of the {len(labels)} pictures of imagelabels.mat once: "
                         f"{_CURE}")  # fmt: skip
    split = {int(number): _SETS[name] for name, numbers in ids.items() for number in numbers}
    return [
        Row(
            {
                "path": f"image_{k:05d}.jpg", "species": classes[label - 1], "split": split[k],
                "captions_file": f"class_{label:05d}/image_{k:05d}.txt",
            },
            f"{root / 'imagelabels.mat'}, picture {k}", k - 1,
        )
        for k, label in enumerate(labels.tolist(), 1)
    ]  # fmt: skip
