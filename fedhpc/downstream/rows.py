"""The rows of a packed file that a task uses, and what the run's model makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from fedhpc.config.downstream import Task, TrainedTask
from fedhpc.config.fields import closest
from fedhpc.config.schema import DualEncoderConfig
from fedhpc.data.batches import BatchMaker, Source
from fedhpc.data.content import SPLITS
from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.text import encode_texts
from fedhpc.downstream.loading import TrainedRun
from fedhpc.interfaces import Split


@dataclass
class Rows:
    """A packed file seen through a run's model and a task's choice of sites.

    Row numbers are the file's, int64 on the CPU. Raises ValueError for pictures of another size than the model's, and
    for sites that the file lacks.
    """

    run: TrainedRun
    task: Task
    packed: PackedFile

    def __post_init__(self) -> None:
        self._check_pictures()
        hold_out = [self.task.hold_out_site] if isinstance(self.task, TrainedTask) and self.task.hold_out_site else []
        known = self.packed.site_names
        for name in (*(self.task.sites or []), *hold_out):
            if name not in known:
                meant = closest(name, known)
                hint = f"did you mean {meant}? " if meant else ""
                raise ValueError(f"site {name} is not in {self.packed.path}; {hint}it has {', '.join(known)}")
        self._hold_out = hold_out[0] if hold_out else None
        self.left_out: dict[Split, int] = {}  # rows that `select` passed over, as they lack something
        self.notes: list[str] = []  # the same in words

    def _check_pictures(self) -> None:
        shape, spec = self.packed.image_shape, self.run.spec
        wanted = (*spec.image_size, spec.image_channels)
        if shape != wanted:
            has = "no pictures" if shape is None else "pictures of {} x {} with {} channels".format(*shape)
            height, width, channels = wanted
            raise ValueError(
                f"data.path: {self.packed.path} has {has}, the run's model reads {height} x {width} with {channels}; "
                f"pack the file again with --image-size {height} --channels {channels}, or train on its size"
            )

    # ------------------------------------------------------------------------------------------------- what is there
    @property
    def is_own(self) -> bool:
        """The very file that the run was trained on."""
        return self.packed.checksum == self.run.checksum

    @cached_property
    def site(self) -> np.ndarray:
        """Site code of every row."""
        return self.packed.read("site")

    @cached_property
    def patient(self) -> Tensor:
        """A number for the patient of every row, int64."""
        _, code = np.unique(self.packed.patients(), return_inverse=True)
        return torch.from_numpy(code.reshape(-1).astype(np.int64))

    @cached_property
    def _split(self) -> np.ndarray:
        return self.packed.read("split")

    def select(self, split: Split, usable: np.ndarray, need: str) -> Tensor:
        """Rows of a split that are `usable` (bool, all rows) and of the task's sites, in the file's order. How many of
        the sites' rows are not usable is kept in `left_out` and `notes`.

        With hold_out_site: of the other sites for train and val, of that site for test.
        Raises ValueError when there is none; `need` says what the rows must have.
        """
        names = self.packed.site_names
        chosen = self.task.sites or names
        if self._hold_out is not None:
            out = self._hold_out
            chosen = [out] if split == "test" else [name for name in chosen if name != out]
        codes = [names.index(name) for name in chosen]
        here = (self._split == SPLITS.index(split)) & np.isin(self.site, codes)
        mask = here & usable & self.packed.read("present/image").astype(bool)
        if not mask.any():
            where = ", ".join(chosen) if len(chosen) <= 5 else f"{len(chosen)} sites"
            raise ValueError(
                f"no row of {self.packed.path} in split {split} at {where or 'no site'} has {need}; choose other sites "
                "(sites, hold_out_site), or look at the file with `fedhpc describe`"
            )
        self.left_out[split] = int((here & ~mask).sum())
        if self.left_out[split]:
            self.notes.append(
                f"{self.left_out[split]} of {int(here.sum())} rows in split {split} are left out: they do not have a "
                f"picture and {need}"
            )
        return torch.from_numpy(np.flatnonzero(mask))

    def labels(self, column: str) -> tuple[np.ndarray, list[str]]:
        """Class of every row (-1: none) and the classes' names. Raises ValueError when the file lacks the column."""
        classes = self.packed.label_classes
        if column not in classes:
            meant = closest(column, classes)
            hint = f"did you mean {meant}? " if meant else ""
            raise ValueError(
                f"label: {column} is not in {self.packed.path}; {hint}its label columns are "
                f"{', '.join(classes) or 'none'}"
            )
        return self.packed.read(f"label/{column}").astype(np.int64), classes[column]

    def scopes(self, rows: Tensor) -> dict[str, Tensor]:
        """Places in `rows` by scope: "all", then every site that has some."""
        codes = torch.from_numpy(self.site[rows.numpy()].astype(np.int64))
        by_site = {name: torch.nonzero(codes == code).flatten() for code, name in enumerate(self.packed.site_names)}
        return {"all": torch.arange(len(rows)), **{name: places for name, places in by_site.items() if len(places)}}

    # ---------------------------------------------------------------------------------------------- through the model
    def maker(self, columns: dict[str, str]) -> BatchMaker:
        """Batches of these columns, normalised as in the run."""
        config = self.run.config
        source = Source(self.packed, columns, config.data.memory_mib)
        return BatchMaker(source, config.data, self.run.device, config.fit.channels_last)

    @cached_property
    def pictures(self) -> BatchMaker:
        return self.maker({"image": "image"})

    @torch.no_grad()
    def image_outputs(self, rows: Tensor, names: Sequence[str]) -> list[Tensor]:
        """Outputs of the model on pictures, float32 [rows, ...] on the CPU, in eval mode."""
        parts: dict[str, list[Tensor]] = {name: [] for name in names}
        for batch in self.pictures.ordered(rows, self.task.batch_size):
            outputs = self.run.module({"image": batch["image"]})
            for name in names:
                parts[name].append(outputs[name].float().cpu())
        return [torch.cat(part) for part in parts.values()]

    @torch.no_grad()
    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """int64 [N,L] -> unit vectors float32 [N,E] on the CPU."""
        parts = [
            self.run.module({"tokens": part.to(self.run.device)})["text"].float().cpu()
            for part in tokens.split(self.task.batch_size)
        ]
        return torch.cat(parts)

    @cached_property
    def tokenizer(self) -> Any:
        """The run's. Raises ValueError for a run without text."""
        if not isinstance(self.run.config.model, DualEncoderConfig) or self.run.tokenizer_json is None:
            raise ValueError(
                f"kind: {cast(Any, self.task).kind} compares pictures with text, but the run has model.kind: "
                f"{self.run.config.model.kind}, which reads none; take a run with model.kind: dual_encoder, or "
                "kind: linear_probe"
            )
        return Tokenizer.from_str(self.run.tokenizer_json)

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, list[str]]:
        """Tokens int64 [N,L] of the run's tokenizer, and what was lost: notes."""
        tokens, cut = encode_texts(self.tokenizer, texts, self.run.spec.max_tokens)
        notes = [f"{cut} of {len(texts)} texts are cut to the model's {self.run.spec.max_tokens} tokens"] if cut else []
        unknown = self.tokenizer.token_to_id("[UNK]")
        if unknown is not None and (share := float((tokens == unknown).any(axis=1).mean())) > 0:
            notes.append(f"{share:.0%} of the texts have words that the run's tokenizer does not know")
        return torch.from_numpy(tokens.astype(np.int64)), notes

    def tokens(self, rows: Tensor) -> tuple[Tensor, list[str]]:
        """Tokens of the rows' texts: as stored where the file is the run's own, else made by the run's tokenizer."""
        tokenizer = self.tokenizer  # refuses a run without text
        if "text" not in self.packed.modalities:
            raise ValueError(f"data.path: {self.packed.path} has no text; pack it with --text-column")
        if self.is_own:
            stored = self.packed.read("tokens", rows.numpy())[:, : self.run.spec.max_tokens]
            return torch.from_numpy(stored.astype(np.int64)), []
        tokens, notes = self.encode(self.packed.texts(rows.numpy()))
        if self.packed.tokenizer_json != self.run.tokenizer_json:
            notes.insert(0, f"texts are tokenised anew with the run's tokenizer ({tokenizer.get_vocab_size()} entries)")
        return tokens, notes
