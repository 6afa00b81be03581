"""How rows that lack a modality are completed before training (ALGORITHMS.md D.3)."""

from __future__ import annotations

import string
from typing import Literal

from pydantic import Field, model_validator

from fedhpc.config.section import Section

PROMPT_FIELDS = ("supercategory", "label", "text", "attributes", "style")


class NeighbourConfig(Section):
    """The row gets the text (or picture) of that row of its own client whose picture (or text) is most similar in the
    space of the frozen encoder, among rows that have both. Needs no weights."""

    method: Literal["neighbour"]
    same_label: bool = False
    """Only rows of the row's own class lend to it: training labels are known to the client. What is lent then always
    fits the label, as nothing in the test rows does; a row of a class without any pair stays incomplete."""


class GeneratorConfig(Section):
    """Each client trains a small conditional generator on its own pairs, from one frozen encoder's global feature to
    the other's tokens, and completes its rows with it. Needs no weights. It makes features, no pixels: model.pictures:
    tokens."""

    method: Literal["generator"]
    hidden: int = Field(256, ge=1)
    """Width of its layers."""
    noise: int = Field(16, ge=1)
    """Random numbers that it gets beside the feature: a conditional variational autoencoder's code."""
    kl: float = Field(0.01, ge=0)
    """Weight of the divergence of the code from a standard normal one."""
    epochs: int = Field(60, ge=1)
    """Passes over the client's pairs."""
    batch_size: int = Field(64, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    fewest_pairs: int = Field(8, ge=2)
    """A client with fewer pairs trains none, and its rows stay incomplete."""


class CaptionerConfig(Section):
    """Picture to text, with any image-to-text model of transformers (BLIP-2, BLIP, GIT, ...)."""

    model: str
    """Local folder or hub id, with the processor beside the weights."""
    coarse: str = "a photo of a {supercategory}"
    """Start of the caption, which the model continues. Fields: {supercategory}, and {label} with use_label."""
    fine: list[str] = Field(default_factory=list)
    """Further prompts, such as "Question: what is the colour of its wing? Answer:"; the answers are put behind the
    caption."""
    max_new_tokens: int = Field(30, ge=1)
    """For each prompt."""


class PainterConfig(Section):
    """Text to picture, with a diffusers pipeline. Needs fedhpc[generate]."""

    model: str
    """Local folder or hub id of a pipeline."""
    prompt: str = "a photo of a {supercategory}, {text}{attributes}{style}"
    """Fields: {supercategory}, {text} (the row's own), {attributes}, {style}, and {label} with use_label."""
    attributes: list[str] = Field(default_factory=list)
    """Put behind the text, each after a comma."""
    style: str = ""
    """Put at the end, after a comma."""
    steps: int = Field(50, ge=1)
    """Denoising steps."""
    guidance: float = Field(7.5, ge=0)
    size: int | None = Field(None, ge=8)
    """Side of the pictures that the pipeline makes, before they shrink to the packed size. Default: its own."""


class PretrainedConfig(Section):
    """Captions and pictures from generative models; `fedhpc complete` makes them before the run."""

    method: Literal["pretrained"]
    image_to_text: CaptionerConfig | None = None
    """Not set: rows without text stay incomplete."""
    text_to_image: PainterConfig | None = None
    """Not set: rows without picture stay incomplete."""
    supercategory: str = "object"
    """What all pictures show, in words: "bird", "white blood cell"."""
    use_label: bool = False
    """Allow {label}, the class that is to be learned, in prompts. It leaks the answer into the training rows."""
    candidates: int = Field(1, ge=1)
    """Made for each row; the one that fits best by CLIP score is kept."""
    clip: str | None = None
    """Folder or hub id of a CLIP model that ranks candidates."""
    batch_size: int = Field(16, ge=1)
    """Rows that are made, and saved, at a time."""

    @model_validator(mode="after")
    def _consistent(self) -> PretrainedConfig:
        if self.image_to_text is None and self.text_to_image is None:
            raise ValueError("nothing to complete with: set completion.image_to_text, completion.text_to_image or both")
        if self.candidates > 1 and self.clip is None:
            raise ValueError(
                f"candidates: {self.candidates}, but nothing ranks them; set completion.clip, a CLIP folder or hub id"
            )
        for prompt in self.prompts:
            used = {name for _, name, _, _ in string.Formatter().parse(prompt) if name is not None}
            if unknown := sorted(used - set(PROMPT_FIELDS)):
                raise ValueError(f"prompt {prompt!r} has {{{unknown[0]}}}; fields are {', '.join(PROMPT_FIELDS)}")
            if "label" in used and not self.use_label:
                raise ValueError(
                    f"prompt {prompt!r} names the class that is to be learned; remove {{label}}, or set "
                    "completion.use_label: true"
                )
        return self

    @property
    def prompts(self) -> list[str]:
        made = [] if self.image_to_text is None else [self.image_to_text.coarse, *self.image_to_text.fine]
        return [*made, *([] if self.text_to_image is None else [self.text_to_image.prompt])]


CompletionConfig = NeighbourConfig | GeneratorConfig | PretrainedConfig
