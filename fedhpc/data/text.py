"""Tokenizers: trained on the spot, or loaded. Token rows are ``[CLS] ... [SEP]`` and padding."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from fedhpc.data.hdf5 import PackedFile

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_TEXTS_AT_ONCE = 4096  # an encoding takes kilobytes: a whole archive of reports would not fit
_PAD_NAMES = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>")


def train_wordpiece(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Lower-cased WordPiece of at most `vocab_size` entries.

    The vocabulary is grown as the `tokenizers` library grows it (merge the most frequent pair), but ties go to the
    alphabetically first pair: the library's own trainer returns another vocabulary in every process.
    Raises ValueError without any word, or when the characters alone exceed `vocab_size`.
    """
    tokenizer = _wordpiece({token: index for index, token in enumerate(SPECIAL)})
    words: Counter[str] = Counter()
    for text in texts:
        clean = tokenizer.normalizer.normalize_str(text)
        words.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(clean))
    if not words:
        raise ValueError("no words to train a tokenizer on: the training rows have no text")
    return _wordpiece(_grow(words, vocab_size))


def _wordpiece(vocab: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, vocab[token]) for token in ("[CLS]", "[SEP]")]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def _grow(counts: Counter[str], vocab_size: int) -> dict[str, int]:
    """WordPiece vocabulary from word counts: characters first, then merged pairs, most frequent first."""
    words = [([c if i == 0 else f"##{c}" for i, c in enumerate(w)], n) for w, n in sorted(counts.items())]
    tokens = [*SPECIAL, *sorted({piece for pieces, _ in words for piece in pieces})]
    if len(tokens) > vocab_size:
        raise ValueError(f"vocab_size {vocab_size} cannot hold the {len(tokens)} characters and special tokens of "
                         f"these texts: set it to {len(tokens)} or more")  # fmt: skip
    pairs: Counter[tuple[str, str]] = Counter()
    places: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for index, (pieces, n) in enumerate(words):
        for pair in itertools.pairwise(pieces):
            pairs[pair] += n
            places[pair].add(index)
    known = set(tokens)
    heap = [(-n, pair) for pair, n in pairs.items()]
    heapq.heapify(heap)
    while heap and len(tokens) < vocab_size:
        negative, pair = heapq.heappop(heap)
        if pairs[pair] != -negative:  # outdated: the count fell since it was pushed
            if pairs[pair] > 0:
                heapq.heappush(heap, (-pairs[pair], pair))
            continue
        merged = pair[0] + pair[1].removeprefix("##")
        if merged not in known:
            known.add(merged)
            tokens.append(merged)
        touched: set[tuple[str, str]] = set()
        for index in sorted(places.pop(pair)):
            pieces, n = words[index]
            for old in itertools.pairwise(pieces):
                pairs[old] -= n
            pieces[:] = _merge(pieces, pair, merged)
            for new in itertools.pairwise(pieces):
                pairs[new] += n
                places[new].add(index)
                touched.add(new)
        for new in touched:
            heapq.heappush(heap, (-pairs[new], new))
    return {token: index for index, token in enumerate(tokens)}


def _merge(pieces: list[str], pair: tuple[str, str], merged: str) -> list[str]:
    out: list[str] = []
    i = 0
    while i < len(pieces):
        if i + 1 < len(pieces) and (pieces[i], pieces[i + 1]) == pair:
            out.append(merged)
            i += 2
        else:
            out.append(pieces[i])
            i += 1
    return out


def load_tokenizer(where: str) -> Tokenizer:
    """A tokenizer.json, a folder with tokenizer.json or (BERT) vocab.txt, another packed file, or a hub id. Raises
    ValueError."""
    path = Path(where)
    if path.suffix == ".h5" and path.is_file():
        with PackedFile(path) as packed:
            if packed.tokenizer_json is None:
                raise ValueError(f"{path} has no texts, so no tokenizer; set --tokenizer to a file that has")
            return Tokenizer.from_str(packed.tokenizer_json)
    if path.is_dir():
        if (path / "tokenizer.json").exists():
            path = path / "tokenizer.json"
        elif (path / "vocab.txt").exists():
            lines = (path / "vocab.txt").read_text(encoding="utf-8").splitlines()
            vocab = {token: index for index, token in enumerate(lines)}
            missing = [token for token in SPECIAL if token not in vocab]
            if missing:
                raise ValueError(f"{path / 'vocab.txt'} lacks {', '.join(missing)}: not a BERT vocabulary")
            return _wordpiece(vocab)
        else:
            raise ValueError(f"{path} has neither tokenizer.json nor vocab.txt: set --tokenizer to a folder that has")
    if path.is_file():
        try:
            return Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{path} is not a tokenizer.json of the tokenizers library: {error}") from error
    try:
        return Tokenizer.from_pretrained(where)
    except Exception as error:
        raise ValueError(f"--tokenizer {where}: neither a local file or folder nor loadable from the hub "
                         f"({error}); without a network, set a local folder") from error  # fmt: skip


def pad_token_of(tokenizer: Tokenizer) -> int:
    """Id that fills short rows. Raises ValueError for a tokenizer without one."""
    if tokenizer.padding:
        return int(tokenizer.padding["pad_id"])
    for name in _PAD_NAMES:
        index = tokenizer.token_to_id(name)
        if index is not None:
            return int(index)
    raise ValueError(f"the tokenizer has no padding token (looked for {', '.join(_PAD_NAMES)}): add one to it")


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int) -> tuple[np.ndarray, int]:
    """Token ids int32 [N, max_tokens], cut or padded, and how many texts were cut. An empty text is all padding."""
    pad = pad_token_of(tokenizer)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    out = np.full((len(texts), max_tokens), pad, np.int32)
    cut = 0
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        part = texts[start : start + _TEXTS_AT_ONCE]
        lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(list(part))]
        tokenizer.enable_truncation(max_tokens)
        for row, (text, encoding) in enumerate(zip(part, tokenizer.encode_batch(list(part)), strict=True), start):
            if text.strip():
                out[row, : len(encoding.ids)] = encoding.ids
        tokenizer.no_truncation()
        cut += sum(length > max_tokens for length, text in zip(lengths, part, strict=True) if text.strip())
    return out, cut
