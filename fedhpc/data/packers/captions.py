"""Several captions a picture: reading them from the folders of Reed et al. (CVPR 2016), and writing them.

A row's text is one caption (or all in one), so that whatever reads packed files needs to know no more; all of them lie
in the columns ``captions/*`` beside it. The tokenizer is trained on all captions of the training rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedhpc.data.packers.source import BadRow, Row
from fedhpc.data.text import encode_texts, load_tokenizer, pad_token_of, train_wordpiece

if TYPE_CHECKING:
    from fedhpc.data.hdf5 import PackWriter
    from fedhpc.data.packers.table import TablePlan

CAPTIONS = (
    "captions of Reed et al., CVPR 2016 (https://github.com/reedscot/cvpr2016): text_c10 of {archive}, or the text "
    "folder that StackGAN and AttnGAN unpack"
)


def choice_of(text: str) -> int | None:
    """--caption: a number from 1 is that caption of each picture; joined is None, all in one. Raises ValueError."""
    if text == "joined":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--caption is {text!r}: set the number of a caption from 1, or joined for all in one")
    return int(text)


def find_captions(given: Path | None, near: Sequence[Path], folders: Sequence[str], first: str, cure: str) -> Path:
    """The folder of the captions: the one given, or text_c10 or text in, or in one of `folders` in, those of `near`.

    first: the caption file of one picture, which tells the right folder. Raises FileNotFoundError.
    """
    bases = [given] if given else [base / folder for base in near for folder in ("", *folders)]
    places = [base / name for base in bases for name in ("", "text_c10", "text")]
    for place in places:
        if (place / first).parent.is_dir():
            return place
    where = str(given) if given else ", ".join(str(base) for base in near)
    raise FileNotFoundError(f"{where}: no folder text_c10 or text with {Path(first).parent}/: {cure}")


def read_captions(path: Path, where: str) -> list[str]:
    """Captions of one picture, a line each. Raises BadRow."""
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        raise BadRow("missing captions", f"{where}: {path} cannot be read ({error.strerror}): complete the "
                     "captions") from error  # fmt: skip
    lines = [" ".join(line.replace("\ufffd", " ").split()) for line in text.splitlines()]  # a few bytes are broken
    captions = [line for line in lines if line]
    if not captions:
        raise BadRow("no captions", f"{where}: {path} has no captions: complete it")
    return captions


def cells_of(captions: Sequence[str], choice: int | None, where: str) -> dict[str, str]:
    """The cells `caption` (the row's text) and `captions` (all, a line each). Raises BadRow."""
    if choice is not None and choice > len(captions):
        raise BadRow("too few captions", f"{where} has {len(captions)} captions: set --caption to {len(captions)} or "
                     "less, or to joined")  # fmt: skip
    text = " ".join(captions) if choice is None else captions[choice - 1]
    return {"caption": text, "captions": "\n".join(captions)}


def caption_note(choice: int | None) -> str:
    """What a packed file says of its text."""
    which = "all captions of a picture in one" if choice is None else f"caption {choice} of each picture"
    return f" text is {which}; captions/* has them all. They name no species."


def write_captions(rows: Sequence[Row], split: np.ndarray, plan: TablePlan, pack: PackWriter) -> int:
    """Text, tokens and captions of the rows. Returns how many captions (or joined texts) were cut."""
    assert plan.text_column is not None and plan.captions_column is not None
    texts = [row.values[plan.text_column] for row in rows]
    captions = [[line for line in row.values[plan.captions_column].split("\n") if line] for row in rows]
    if plan.tokenizer:
        tokenizer = load_tokenizer(plan.tokenizer)
    else:  # val and test must not shape the vocabulary
        seen = (text for own, code in zip(captions, split, strict=True) if code == 0 for text in own)
        tokenizer = train_wordpiece(seen, plan.vocab_size)
    tokens, cut = encode_texts(tokenizer, texts, plan.max_tokens)
    each, cut_captions = encode_texts(tokenizer, [text for own in captions for text in own], plan.max_tokens)
    pack.set_text(texts)
    pack.set_tokens(
        tokens,
        tokenizer_json=tokenizer.to_str(),
        pad_token=pad_token_of(tokenizer),
        vocab_size=tokenizer.get_vocab_size(),
    )
    pack.set_captions(captions, each)
    pack.set_present("text", np.asarray([bool(text) for text in texts], bool))
    return max(cut, cut_captions)
