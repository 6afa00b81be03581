"""What can be left out of the captions of blood cells."""

from __future__ import annotations

import pytest

from fedhpc.data.packers.pbc_wbcatt import _hidden
from fedhpc.data.packers.source import Row

CAPTION = "A small ig with a round cell body and densely packed chromatin; clear blue cytoplasm; big red granules."


def row(caption: str) -> Row:
    return Row({"caption": caption, "cell_type": "ig"}, "metadata.csv, line 9", 7)


@pytest.mark.parametrize(
    ("hide_type", "hide_granules", "left"),
    [
        (True, False, CAPTION.replace(" ig ", " cell ")),
        (False, True, "A small ig with a round cell body and densely packed chromatin; clear blue cytoplasm."),
        (True, True, "A small cell with a round cell body and densely packed chromatin; clear blue cytoplasm."),
    ],
)
def test_captions(hide_type: bool, hide_granules: bool, left: str) -> None:
    assert _hidden(row(CAPTION), hide_type, hide_granules).values["caption"] == left


def test_rows_without_caption_are_left_alone() -> None:
    assert _hidden(row(""), True, True) == row("")


@pytest.mark.parametrize("caption", ["An ig.", CAPTION.replace(" ig ", " cell "), CAPTION.replace("granules", "spots")])
def test_a_caption_of_another_form_is_refused(caption: str) -> None:
    with pytest.raises(ValueError, match="line 9: the caption .* is not 'A SIZE ig with .*--hide-type"):
        _hidden(row(caption), True, True)
