"""How well masks overlap."""

from __future__ import annotations

from torch import Tensor


def dice(predicted: Tensor, mask: Tensor) -> Tensor:
    """Dice coefficient 2 |A and B| / (|A| + |B|) of each picture, float64 [N]; 1 where both are empty.

    predicted, mask: bool [N,H,W]. (Dice, Ecology 1945; exact, from pixel counts.)
    Raises ValueError for other shapes or types.
    """
    if predicted.shape != mask.shape or predicted.ndim != 3 or predicted.dtype.is_floating_point:
        raise ValueError(
            f"Dice compares masks bool [N,H,W]; got {predicted.dtype} {tuple(predicted.shape)} and "
            f"{mask.dtype} {tuple(mask.shape)}"
        )
    a, b = predicted.bool().flatten(1), mask.bool().flatten(1)
    overlap = (a & b).sum(dim=1).double()
    size = (a.sum(dim=1) + b.sum(dim=1)).double()
    return (2 * overlap / size.clamp(min=1)).masked_fill(size == 0, 1.0)
