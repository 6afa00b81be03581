"""MedMNIST v2, the twelve 2-D sets (Yang et al., Scientific Data 2023), and their larger versions (MedMNIST+).

One npz file a set, under the name it is published with: pathmnist.npz (28 px), pathmnist_64.npz, ..., with
train_images, train_labels, val_images, val_labels, test_images, test_labels.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from fedhpc.data.hdf5 import SPLITS
from fedhpc.data.packers.arrays import BLOCK, ArrayPlan, pack_arrays
from fedhpc.data.packers.official import Options, thin
from fedhpc.data.packers.table import PackReport

_SOURCE = "{name} of MedMNIST v2 (Yang et al., Scientific Data 2023; doi:10.5281/zenodo.10519652)"
_NOTE = (
    "Official split. The file names no patients: each picture counts as one, so pictures of one patient may be dealt "
    "to two clients."
)
_ORGANS = (
    "bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver", "lung-left", "lung-right",
    "pancreas", "spleen",
)  # fmt: skip


class _Set(NamedTuple):
    rows: tuple[int, int, int]  # published train, val, test
    classes: tuple[str, ...]
    several: bool = False  # several findings a picture


_SETS = {
    "pathmnist": _Set((89996, 10004, 7180), (
        "adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa",
        "cancer-associated stroma", "colorectal adenocarcinoma epithelium")),
    "chestmnist": _Set((78468, 11219, 22433), (
        "atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia", "pneumothorax",
        "consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia"), several=True),
    "dermamnist": _Set((7007, 1003, 2005), (
        "actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma", "benign keratosis-like lesions",
        "dermatofibroma", "melanoma", "melanocytic nevi", "vascular lesions")),
    "octmnist": _Set((97477, 10832, 1000), (
        "choroidal neovascularization", "diabetic macular edema", "drusen", "normal")),
    "pneumoniamnist": _Set((4708, 524, 624), ("normal", "pneumonia")),
    "retinamnist": _Set((1080, 120, 400), ("grade 0", "grade 1", "grade 2", "grade 3", "grade 4")),
    "breastmnist": _Set((546, 78, 156), ("malignant", "normal, benign")),
    "bloodmnist": _Set((11959, 1712, 3421), (
        "basophil", "eosinophil", "erythroblast", "immature granulocyte", "lymphocyte", "monocyte", "neutrophil",
        "platelet")),
    "tissuemnist": _Set((165466, 23640, 47280), (
        "Collecting Duct, Connecting Tubule", "Distal Convoluted Tubule", "Glomerular endothelial cells",
        "Interstitial endothelial cells", "Leukocytes", "Podocytes", "Proximal Tubule Segments",
        "Thick Ascending Limb")),
    "organamnist": _Set((34561, 6491, 17778), _ORGANS),
    "organcmnist": _Set((12975, 2392, 8216), _ORGANS),
    "organsmnist": _Set((13932, 2452, 8827), _ORGANS),
}  # fmt: skip
_CURE = (
    "give a file as https://medmnist.com (Zenodo 10519652) publishes it: one of "
    f"{', '.join(f'{name}.npz' for name in _SETS)}, or its _64, _128 or _224 version"
)


def pack_medmnist(file: Path, out: Path, options: Options) -> PackReport:
    """Pack one npz file, official split; pictures are streamed. ChestMNIST: a label for each finding, absent or
    present. Raises ValueError, FileNotFoundError."""
    name = _name(file)
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist: {_CURE}")
    try:
        with zipfile.ZipFile(file) as archive:
            found = {member.removesuffix(".npy") for member in archive.namelist()}
            missing = [key for split in SPLITS for key in (f"{split}_images", f"{split}_labels") if key not in found]
            if missing:
                raise ValueError(f"{file} lacks {', '.join(missing)}; it holds {', '.join(sorted(found))}: {_CURE}")
            targets = {split: _targets(archive, split, _SETS[name], file) for split in SPLITS}
            kept = thin([(split, k) for split in SPLITS for k in range(len(targets[split]))], options.limit)
            chosen = {split: np.asarray([k for s, k in kept if s == split], np.int64) for split in SPLITS}
            plan = ArrayPlan(
                out=out, name=name, version=file.stem, source=_SOURCE.format(name=name),
                licence="CC BY-NC 4.0" if name == "dermamnist" else "CC BY 4.0",
                note=_NOTE + _counted(name, [len(targets[split]) for split in SPLITS]), command=options.command,
                row_ids=[f"{split}/{k:06d}" for split, k in kept], splits=[split for split, _ in kept],
                labels=_labels(np.concatenate([targets[split][chosen[split]] for split in SPLITS]), _SETS[name]),
                image_size=options.image_size, overwrite=options.overwrite,
            )  # fmt: skip
            lengths = {split: len(targets[split]) for split in SPLITS}
            blocks = (b for split in SPLITS for b in _images(archive, split, lengths[split], chosen[split], file))
            return pack_arrays(blocks, plan)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{file} is truncated or no npz file ({error}): download it again") from error


def _name(file: Path) -> str:
    name = re.sub(r"_(64|128|224)$", "", file.name.removesuffix(".npz"))
    if name.endswith("3d") or re.search(r"3d_\d+$", name):
        raise ValueError(f"{file.name} is one of MedMNIST's 3-D sets, and a packed file holds pictures: {_CURE}")
    if name not in _SETS or file.suffix != ".npz":
        raise ValueError(f"{file.name} is no name of MedMNIST v2, so its classes are unknown: {_CURE}")
    return name


def _counted(name: str, rows: Sequence[int]) -> str:
    published = _SETS[name].rows
    if tuple(rows) == published:
        return ""
    found, current = (", ".join(map(str, counts)) for counts in (rows, published))
    return f" The file has {found} rows in train, val, test; the current release has {current}."


# --------------------------------------------------------------------------------------------------- arrays by blocks
def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(stream)


def _targets(archive: zipfile.ZipFile, split: str, kind: _Set, file: Path) -> np.ndarray:
    """int64 [n, 1], or [n, findings] of 0 and 1."""
    with archive.open(f"{split}_labels.npy") as stream:
        try:
            values = np.lib.format.read_array(stream, allow_pickle=False)
        except ValueError as error:
            raise ValueError(f"{file}: {split}_labels cannot be read ({error}): download it again") from error
    width, top = (len(kind.classes), 1) if kind.several else (1, len(kind.classes) - 1)
    values = values[:, None] if values.ndim == 1 else values
    if values.dtype.kind not in "iu" or values.ndim != 2 or values.shape[1] != width or not len(values):
        raise ValueError(f"{file}: {split}_labels must be integers [n, {width}], not {values.dtype} "
                         f"{list(values.shape)}: {_CURE}")  # fmt: skip
    if not 0 <= int(values.min()) <= int(values.max()) <= top:
        raise ValueError(f"{file}: {split}_labels must lie in 0..{top}: {_CURE}")
    return values.astype(np.int64)


def _labels(targets: np.ndarray, kind: _Set) -> dict[str, tuple[np.ndarray, Sequence[str]]]:
    if not kind.several:
        return {"label": (targets[:, 0], kind.classes)}
    first = np.where(targets.any(axis=1), targets.argmax(axis=1), len(kind.classes))
    findings = {name: (targets[:, k], ("absent", "present")) for k, name in enumerate(kind.classes)}
    return {**findings, "primary_finding": (first, (*kind.classes, "none"))}


def _images(archive: zipfile.ZipFile, split: str, length: int, chosen: np.ndarray, file: Path) -> Iterator[np.ndarray]:
    """Blocks of uint8 [n, H, W, C] of the chosen rows (sorted)."""
    with archive.open(f"{split}_images.npy") as stream:
        try:
            shape, fortran, dtype = _header(stream)
        except ValueError as error:
            raise ValueError(f"{file}: {split}_images cannot be read ({error}): download it again") from error
        colour = len(shape) == 4 and shape[3] == 3
        if dtype != np.uint8 or fortran or not (len(shape) == 3 or colour) or shape[0] != length:
            raise ValueError(f"{file}: {split}_images must be uint8 [{length}, H, W] or [{length}, H, W, 3], not "
                             f"{dtype} {list(shape)}: {_CURE}")  # fmt: skip
        size = int(np.prod(shape[1:]))
        for start in range(0, length, BLOCK):
            count = min(BLOCK, length - start)
            data = stream.read(count * size)
            if len(data) < count * size:
                raise ValueError(f"{file}: {split}_images is cut short: download it again")
            inside = chosen[(chosen >= start) & (chosen < start + count)] - start
            if len(inside):
                block = np.frombuffer(data, np.uint8).reshape(count, *shape[1:])[inside]
                yield block if colour else block[..., None]
