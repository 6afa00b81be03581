"""Captions and pictures that generative models make for rows that lack one: written once, by `fedhpc complete`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np
import torch
from tokenizers import Tokenizer

from fedhpc.client.client import derived_seed
from fedhpc.completion.parts import Part, Ranks, in_parts
from fedhpc.completion.pretrained import Captioner, ClipRanker, Painter
from fedhpc.completion.reader import Made
from fedhpc.config.completion import PretrainedConfig
from fedhpc.config.schema import RunConfig
from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.text import encode_texts

Array = np.ndarray
OTHER = {"image": "text", "text": "image"}


@dataclass
class Studio:
    """Makes what a row lacks; loads a model when it is first needed."""

    config: RunConfig
    method: PretrainedConfig
    packed: PackedFile
    device: torch.device

    @property
    def makes(self) -> tuple[str, ...]:
        """Of image and text, what there is a model for."""
        method = self.method
        given = {"image": method.text_to_image, "text": method.image_to_text}
        return tuple(name for name, model in given.items() if model is not None)

    def make(self, name: str, rows: Array) -> dict[str, Array]:
        """For rows [n] that lack `name`: "row", "candidate" and "score" (CLIP's cosine; nan where nothing ranked), and
        "text" and "tokens", or "image" uint8 [n,H,W,C]."""
        return self._texts(rows) if name == "text" else self._images(rows)

    # ---------------------------------------------------------------------------------------------------- inside
    def _texts(self, rows: Array) -> dict[str, Array]:
        pictures = self.packed.read("image", rows)
        seed = derived_seed(self.config.random_seed, "captions", int(rows[0]))
        tries = self._captioner(pictures, self._labels(rows), self.method.candidates, seed)
        place, score = self._best([(pictures, texts) for texts in tries])
        texts = [tries[k][row] for row, k in enumerate(place)]
        assert self.packed.tokenizer_json is not None, "a set with text has a tokenizer"
        tokens, _ = encode_texts(Tokenizer.from_str(self.packed.tokenizer_json), texts, self.packed.max_tokens)
        return {"row": rows, "text": np.asarray(texts, dtype=str), "tokens": tokens, "candidate": place, "score": score}

    def _images(self, rows: Array) -> dict[str, Array]:
        texts = self.packed.texts(rows)
        shape = self.packed.image_shape
        assert shape is not None, "a set with pictures knows their shape"
        tries = [
            self._painter(
                texts,
                self._labels(rows),
                shape,
                [derived_seed(self.config.random_seed, "picture", int(row), k) for row in rows],
            )
            for k in range(self.method.candidates)
        ]
        place, score = self._best([(pictures, texts) for pictures in tries])
        image = np.stack([tries[k][row] for row, k in enumerate(place)])
        return {"row": rows, "image": image, "candidate": place, "score": score}

    def _best(self, tries: Sequence[tuple[Array, Sequence[str]]]) -> tuple[Array, Array]:
        """The candidate of each row with the highest CLIP score, the first among equals, and that score."""
        rows = len(tries[0][1])
        if len(tries) == 1:
            return np.zeros(rows, np.int64), np.full(rows, np.nan)
        scores = np.stack([self._ranker(pictures, texts) for pictures, texts in tries])
        place = scores.argmax(axis=0)
        return place, scores[place, np.arange(rows)]

    def _labels(self, rows: Array) -> list[str]:
        """Names of classes, where prompts may use them."""
        label = self.config.data.label
        if not self.method.use_label or label is None:
            return [""] * len(rows)
        classes = self.packed.label_classes[label]
        return [classes[code] if code >= 0 else "" for code in self.packed.read(f"label/{label}", rows)]

    @cached_property
    def _captioner(self) -> Captioner:
        assert self.method.image_to_text is not None
        return Captioner(self.method.image_to_text, self.method.supercategory, self.device)

    @cached_property
    def _painter(self) -> Painter:
        assert self.method.text_to_image is not None
        return Painter(self.method.text_to_image, self.method.supercategory, self.device)

    @cached_property
    def _ranker(self) -> ClipRanker:
        assert self.method.clip is not None
        return ClipRanker(self.method.clip, self.device)


def ensure_made(
    path: Path,
    config: RunConfig,
    method: PretrainedConfig,
    packed: PackedFile,
    lacking: Mapping[str, Array],
    device: torch.device,
    ranks: Ranks,
) -> None:
    """Writes a sidecar with what stands in for the rows that lack "image" and "text", batch after batch: what was
    stopped goes on. Every rank calls this."""
    maker = Studio(config, method, packed, device)
    jobs = [
        (name, lacking[name][start : start + method.batch_size])
        for name in maker.makes
        for start in range(0, len(lacking[name]), method.batch_size)
    ]
    names = [f"{number:06d}-{name}" for number, (name, _) in enumerate(jobs)]

    def make(number: int) -> Part:
        name, rows = jobs[number]
        return {f"{name}.{key}": value for key, value in maker.make(name, rows).items()}

    attributes = {
        "fedhpc_completion": 1,
        "checksum": packed.checksum,
        "method": json.dumps(method.model_dump(mode="json")),
    }
    unit = f"x {method.batch_size} rows"
    in_parts(path, names, make, ranks, attributes, what="completion by pretrained models", unit=unit)


def read_made(path: Path) -> dict[str, Made]:
    """Of a sidecar: all in memory, rows sorted."""
    found = {}
    beside = ("row", "donor", "text", "score", "candidate")
    with h5py.File(path, "r", locking=False) as file:
        for name in OTHER:
            if name not in file:
                continue
            group = file[name]
            order = np.argsort(group["row"][()])
            donor = group["donor"][()][order] if "donor" in group else None
            columns = {key: group[key][()][order] for key in group if key not in beside}
            found[name] = Made(group["row"][()][order], donor, columns)
    return found
