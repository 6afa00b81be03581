"""What a model is told of the data, and what of the model does not fit them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedhpc.data.select import check_vocabulary


class Packed:
    def __init__(self, words: list[str] | None) -> None:
        self.tokenizer_json = None if words is None else tokenizer(words)


def tokenizer(words: list[str]) -> str:
    vocab = {word: number for number, word in enumerate(["[UNK]", *words])}
    return json.dumps({"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None,
                       "post_processor": None, "decoder": None, "truncation": None, "padding": None,
                       "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}})  # fmt: skip


def test_words_of_other_numbers_are_refused(tmp_path: Path) -> None:
    """Of as many words, so nothing else would tell."""
    (tmp_path / "tokenizer.json").write_text(tokenizer(["cell", "round"]))
    with pytest.raises(
        ValueError, match="has the number 1 for 'cell', the packed set 2; pack the set with --tokenizer"
    ):
        check_vocabulary(Packed(["round", "cell"]), str(tmp_path))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has the number none for 'a', the packed set 1"):
        check_vocabulary(Packed(["a", "round"]), str(tmp_path))  # type: ignore[arg-type]


def test_the_same_words_and_folders_that_say_nothing_are_let_through(tmp_path: Path) -> None:
    check_vocabulary(Packed(["round", "cell"]), str(tmp_path))  # type: ignore[arg-type]
    (tmp_path / "tokenizer.json").write_text(tokenizer(["cell", "round"]))
    check_vocabulary(Packed(["cell", "round"]), str(tmp_path))  # type: ignore[arg-type]
    check_vocabulary(Packed(None), str(tmp_path))  # type: ignore[arg-type]
