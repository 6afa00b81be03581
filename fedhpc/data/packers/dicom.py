"""DICOM pictures as uint8 arrays, through pydicom (an optional extra)."""

from __future__ import annotations

import importlib.util
import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def is_dicom(data: bytes) -> bool:
    """A DICOM file has a preamble of 128 bytes, then the letters DICM."""
    return data[128:132] == b"DICM"


def require_pydicom() -> None:
    """Raise ValueError where pydicom is not installed."""
    if importlib.util.find_spec("pydicom") is None:
        raise ValueError("DICOM pictures need pydicom: pip install -c constraints.txt -e '.[dicom]', or convert them "
                         "to PNG or JPEG of the same names")  # fmt: skip


def decode_dicom(data: bytes) -> np.ndarray:
    """uint8 [H, W, 1 or 3] of a one-frame DICOM picture; MONOCHROME1 is inverted, so that air is dark.

    8 bits stay as they are. More bits go through the file's own rescale and window (PS3.3 C.7.6.3, C.11.2), or from
    the lowest to the highest value where it has none. Raises ValueError.
    """
    import pydicom
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    try:
        file = pydicom.dcmread(io.BytesIO(data))
        pixels = np.asarray(file.pixel_array)
        kind = str(file.PhotometricInterpretation)
        if int(file.BitsStored) > 8 and kind.startswith("MONOCHROME"):
            pixels = np.asarray(apply_voi_lut(apply_modality_lut(pixels, file), file), np.float64)
            low, high = float(pixels.min()), float(pixels.max())
            pixels = np.rint((pixels - low) * (255 / max(high - low, 1e-12)))
        if kind.startswith("YBR"):  # Pillow, which decodes JPEG for pydicom, may have left the colour space as it was
            pixels = np.asarray(pydicom.pixels.convert_color_space(pixels, kind, "RGB"))
    except Exception as error:  # pydicom and its decoders raise a dozen kinds
        raise ValueError(f"not a readable DICOM picture: {error}") from error
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise ValueError(f"a DICOM picture of shape {list(pixels.shape)}: one grey or RGB frame was expected")
    if pixels.min() < 0 or pixels.max() > 255:
        raise ValueError(f"DICOM values reach {pixels.max()}, but BitsStored is {file.BitsStored}: convert it to PNG")
    pixels = pixels.astype(np.uint8)
    return 255 - pixels if kind == "MONOCHROME1" else pixels


def read_header(path: Path, tags: Sequence[str]) -> dict[str, str]:
    """Tags of a DICOM file as text, without its pixels; "" for those it lacks, and for all of a file that is bad."""
    import pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the RSNA writes ages as "51", not "051Y": one warning a file
        try:
            file = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(tags))
            return {tag: str(file.get(tag, "") or "").strip() for tag in tags}
        except (OSError, pydicom.errors.InvalidDicomError, ValueError, EOFError):
            return dict.fromkeys(tags, "")
