"""Tokenizers: the same in every process, and honest about what they cannot hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedhpc.data.hdf5 import PackWriter
from fedhpc.data.text import SPECIAL, encode_texts, load_tokenizer, pad_token_of, train_wordpiece

TEXTS = ["Mild opacity in the LEFT lung.", "no opacity, clear lungs", "severe opacities of the right lung"] * 3
_SCRIPT = (
    "from fedhpc.data.text import train_wordpiece; import hashlib; import sys;"
    "print(hashlib.sha256(train_wordpiece(eval(sys.argv[1]), 60).to_str().encode()).hexdigest())"
)


def test_training_gives_the_same_vocabulary_in_every_process() -> None:
    runs = [
        subprocess.run(
            [sys.executable, "-c", _SCRIPT, repr(TEXTS)], capture_output=True, text=True, check=True,
            cwd=Path(__file__).parents[3], env={"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert runs[0] == runs[1] and len(runs[0].strip()) == 64


def test_frequent_words_become_tokens() -> None:
    tokenizer = train_wordpiece(TEXTS, 200)
    assert tokenizer.encode("Opacity in the lung").tokens == ["[CLS]", "opacity", "in", "the", "lung", "[SEP]"]
    assert tokenizer.get_vocab_size() <= 200
    assert [tokenizer.token_to_id(token) for token in SPECIAL] == [0, 1, 2, 3, 4]
    assert tokenizer.encode("lung 漢").tokens == ["[CLS]", "lung", "[UNK]", "[SEP]"]


def test_merges_follow_frequency() -> None:
    """aab occurs most: its pairs merge first, before those of cd."""
    tokenizer = train_wordpiece(["aab aab aab cd"], len(SPECIAL) + 5 + 2)
    assert tokenizer.encode("aab cd").tokens == ["[CLS]", "aab", "c", "##d", "[SEP]"]


def test_vocabulary_too_small_for_the_characters() -> None:
    with pytest.raises(ValueError, match=r"vocab_size 10 cannot hold the \d+ characters.*set it to"):
        train_wordpiece(TEXTS, 10)
    with pytest.raises(ValueError, match="no words"):
        train_wordpiece(["", " "], 100)


def test_rows_are_padded_and_cut() -> None:
    tokenizer = train_wordpiece(TEXTS, 200)
    tokens, cut = encode_texts(tokenizer, ["clear lungs", "", "severe opacities of the right lung"], 6)
    assert tokens.dtype == np.int32 and tokens.shape == (3, 6) and cut == 1
    assert (tokens[1] == pad_token_of(tokenizer)).all()
    assert tokens[0, 0] == tokens[2, 0] == 2 and tokens[2, -1] == 3  # [CLS] ... [SEP] also where a text was cut
    assert tokens[0].tolist() == [*tokenizer.encode("clear lungs").ids, 0, 0]


def test_loading(tmp_path: Path) -> None:
    tokenizer = train_wordpiece(TEXTS, 100)
    (tmp_path / "json").mkdir()
    tokenizer.save(str(tmp_path / "json" / "tokenizer.json"))
    (tmp_path / "txt").mkdir()
    vocab = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    (tmp_path / "txt" / "vocab.txt").write_text("\n".join(vocab))
    for where in (tmp_path / "json", tmp_path / "json" / "tokenizer.json", tmp_path / "txt"):
        assert load_tokenizer(str(where)).encode(TEXTS[0]).ids == tokenizer.encode(TEXTS[0]).ids
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"neither tokenizer.json nor vocab.txt"):
        load_tokenizer(str(tmp_path / "empty"))
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is not a tokenizer.json"):
        load_tokenizer(str(tmp_path / "bad.json"))


def test_the_tokenizer_of_another_packed_file(tmp_path: Path) -> None:
    tokenizer = train_wordpiece(TEXTS, 80)
    with PackWriter(tmp_path / "told.h5", name="a", source="b", licence="c") as writer:
        tokens, _ = encode_texts(tokenizer, TEXTS, 12)
        writer.set_text(TEXTS)
        writer.set_tokens(tokens, tokenizer_json=tokenizer.to_str(), pad_token=0, vocab_size=80)
        writer.set_row_ids([str(k) for k in range(len(TEXTS))])
        writer.set_split(np.zeros(len(TEXTS), np.int8))
    assert load_tokenizer(str(tmp_path / "told.h5")).to_str() == tokenizer.to_str()
    with PackWriter(tmp_path / "mute.h5", name="a", source="b", licence="c") as writer:
        writer.add_images(np.zeros((4, 8, 8, 1), np.uint8))
        writer.set_row_ids(list("0123"))
        writer.set_split(np.zeros(4, np.int8))
    with pytest.raises(ValueError, match="mute.h5 has no texts, so no tokenizer"):
        load_tokenizer(str(tmp_path / "mute.h5"))


def test_many_texts_are_encoded_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["one two", "two three four five", "", "one", "five five five five five"]
    tokenizer = train_wordpiece(texts, 60)
    whole, cut = encode_texts(tokenizer, texts, 5)
    monkeypatch.setattr("fedhpc.data.text._TEXTS_AT_ONCE", 2)
    parts, cut_in_parts = encode_texts(tokenizer, texts, 5)
    assert np.array_equal(whole, parts) and cut == cut_in_parts == 2
