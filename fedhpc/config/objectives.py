"""What clients minimise: one section per objective, told apart by `name`. Defaults are the published setting.

All objectives over pairs have one temperature, and one key sets it: `model.temperature`. Not set, it is what the
objective's paper publishes, as `published_temperature` says.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from fedhpc.config.section import Section


class PairObjective(Section):
    """An objective over pairs of pictures and texts."""

    published_temperature: ClassVar[float]
    learns_temperature: ClassVar[bool] = False  # unless model.learn_temperature says otherwise


class ClipConfig(PairObjective):
    """Cross entropy over the batch in both directions, summed (CLIP, Radford et al. 2021; FedDRA's L_ITA).

    Published temperature: 0.07, fixed (FedDRA).
    """

    published_temperature: ClassVar[float] = 0.07
    name: Literal["clip"]


class ConvirtConfig(PairObjective):
    """Cross entropy over the batch, a weighted mean of both directions (ConVIRT, Zhang et al. 2020).

    Published temperature: 0.1, fixed.
    """

    published_temperature: ClassVar[float] = 0.1
    name: Literal["convirt"]
    image_weight: float = Field(0.75, ge=0, le=1)
    """Weight lambda of finding the text of a picture; finding the picture of a text has the rest."""


class SiglipConfig(PairObjective):
    """Every pair of the batch judged on its own by a sigmoid (SigLIP, Zhai et al. 2023).

    Published temperature: 0.1 at the start (their t = 10), learned.
    """

    published_temperature: ClassVar[float] = 0.1
    learns_temperature: ClassVar[bool] = True
    name: Literal["siglip"]
    bias: float = -10.0
    """Added to scaled similarities, at the start: most pairs do not match. Always learned, in block `temperature`."""


class GloriaConfig(PairObjective):
    """clip's loss and the same over similarities of words and picture regions (GLoRIA, Huang et al. 2021).

    Published temperature: 0.1, fixed (their temp3 = 10, for both parts).
    """

    published_temperature: ClassVar[float] = 0.1
    name: Literal["gloria"]
    attention_scale: float = Field(4.0, gt=0)
    """How sharply a word picks its regions (temp1)."""
    word_scale: float = Field(5.0, gt=0)
    """How much the best words count in the similarity of a text (temp2)."""
    local_weight: float = Field(1.0, gt=0)
    """Weight of the part over words and regions."""


class CrossEntropyConfig(Section):
    """Cross entropy of a classifier over the rows that have a label."""

    name: Literal["cross_entropy"]


class MvpConfig(Section):
    """Cross entropy of the joint representation, plus MCM and RAM, which bind it to those of single modalities
    (FedMVP, ALGORITHMS.md D.2). model.kind: joint only."""

    name: Literal["fedmvp"]
    mcm: float = Field(0.01, ge=0)
    """Weight a of the multi-modal contrastive matching loss."""
    ram: float = Field(0.5, ge=0)
    """Weight b of the representation aligned margin loss."""
    temperature: float = Field(0.1, gt=0)
    """MCM's similarities are divided by it."""
    ram_form: Literal["batch", "per_sample"] = "batch"
    """batch, as released: all rows are pulled where a single modality's mean cross entropy is below the joint one's,
    and both ends move. per_sample: row by row, and only the joint representation moves."""
    normalise: bool = True
    """Bring the joint representation to length 1 before MCM; the released code does not."""


ObjectiveConfig = ClipConfig | ConvirtConfig | SiglipConfig | GloriaConfig | CrossEntropyConfig | MvpConfig
