"""Pictures in and out of bytes: uint8 [H, W, C] arrays with C = 1 (grey) or 3 (RGB)."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

Array = np.ndarray
_GREY = {"L", "LA", "1"}
_COLOUR = {"RGB", "RGBA", "P", "CMYK", "YCbCr", "PA", "RGBX"}


def decode_image(data: bytes, channels: int | None = None) -> Array:
    """Decode JPEG, PNG or any other format of Pillow, turned upright by its EXIF orientation.

    channels: 1 or 3 converts; None keeps grey as 1 and colour as 3. Returns uint8 [H, W, C].
    Raises ValueError for bytes that are no picture, and for more than 8 bits a channel, whose grey levels would be
    lost.
    """
    if not data:
        raise ValueError("the picture has no bytes")
    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
            picture = ImageOps.exif_transpose(opened)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a readable picture: {error}") from error
    if picture.mode not in _GREY | _COLOUR:
        raise ValueError(f"picture mode {picture.mode} has more than 8 bits a channel: convert it to 8 bits first")
    if channels is None:
        channels = 1 if picture.mode in _GREY else 3
    array = np.asarray(picture.convert("L" if channels == 1 else "RGB"), dtype=np.uint8)
    return array[:, :, None] if channels == 1 else array


def encode_png(image: Array) -> bytes:
    """PNG bytes of a uint8 [H, W, 1 or 3] picture."""
    buffer = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()


def letterbox(image: Array, size: int, *, nearest: bool = False) -> Array:
    """Scale uint8 [H, W, C] until its longer side is `size`, and centre it on black: uint8 [size, size, C].

    nearest: for masks, whose values are classes.
    """
    height, width, channels = image.shape
    if (height, width) == (size, size):
        return image
    scale = size / max(height, width)
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    picture = Image.fromarray(image[:, :, 0] if channels == 1 else image)
    resample = Image.Resampling.NEAREST if nearest else Image.Resampling.BICUBIC
    resized = np.asarray(picture.resize((new_width, new_height), resample)).reshape(new_height, new_width, channels)
    out = np.zeros((size, size, channels), np.uint8)
    top, left = (size - new_height) // 2, (size - new_width) // 2
    out[top : top + new_height, left : left + new_width] = resized
    return out
