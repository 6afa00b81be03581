"""What a run can be told: one pydantic model per section of a YAML file.

This package imports no torch, so that ``fedhpc check FILE`` answers in under a second on a login node. The text under
a field is its help. A key that would have no effect is an error, never ignored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from fedhpc.config.algorithms import AlgorithmConfig, FedAvgConfig
from fedhpc.config.byzantine import Attack, RobustRule
from fedhpc.config.completion import CompletionConfig
from fedhpc.config.compression import CompressionConfig
from fedhpc.config.encoder import EncoderConfig as EncoderConfig
from fedhpc.config.fit import FitConfig as FitConfig
from fedhpc.config.fit import OptimizerConfig as OptimizerConfig
from fedhpc.config.fusion import FusionConfig as FusionConfig
from fedhpc.config.fusion import ModalitiesConfig
from fedhpc.config.joint import JointConfig as JointConfig
from fedhpc.config.joint import MissingConfig
from fedhpc.config.noise import Noise
from fedhpc.config.objectives import ObjectiveConfig
from fedhpc.config.partition import ColumnPartition as ColumnPartition
from fedhpc.config.partition import DirichletPartition as DirichletPartition
from fedhpc.config.partition import GroupsPartition as GroupsPartition
from fedhpc.config.partition import IidPartition as IidPartition
from fedhpc.config.partition import Partition as Partition
from fedhpc.config.partition import QuantityPartition as QuantityPartition
from fedhpc.config.privacy import Privacy
from fedhpc.config.section import Section

Split = Literal["train", "val", "test"]


class PhantomConfig(Section):
    """Generated chest-like pictures with matching sentences (``fedhpc pack phantom``). Not real data."""

    num_patients: int = Field(600, ge=10)
    """Patients in the whole set; each has one or two pictures."""
    num_sites: int = Field(5, ge=1, le=26)
    """Sites that differ in scanner look, prevalence of findings and wording."""
    hard_sites: int = Field(0, ge=0)
    """The last this many sites have an old scanner (inverted, little contrast, noise) and write in German."""
    noise_sites: int = Field(0, ge=0)
    """The first this many sites are outliers: their pictures are noise and show nothing of what the sentences say."""
    image_size: int = Field(64, ge=16)
    """Height and width in pixels."""
    random_seed: int = 0
    """Seed of the generator; the same seed gives the same file."""
    vocab_size: int = Field(400, ge=50)
    """Entries of the WordPiece tokenizer that is trained on the sentences."""
    max_tokens: int = Field(32, ge=4)
    """Tokens a sentence is cut or padded to."""
    lab_values: int = Field(0, ge=0)
    """Columns of a tabular modality ``labs``: noisy numbers that depend on the findings. 0: no such modality."""

    @model_validator(mode="after")
    def _sites_suffice(self) -> PhantomConfig:
        if self.hard_sites + self.noise_sites > self.num_sites:
            raise ValueError(
                f"hard_sites({self.hard_sites}) + noise_sites({self.noise_sites}) exceed num_sites({self.num_sites}); "
                "raise num_sites"
            )
        return self


class DataConfig(Section):
    """Which packed file is read, and how its rows become batches."""

    path: Path | None = None
    """HDF5 file written by ``fedhpc pack``. Relative paths start at the working directory."""
    phantom: PhantomConfig | None = None
    """Generate the phantom set instead: once, into ``data/``, or at `path` where that is given."""
    label: str | None = None
    """Label column that a classifier learns. Required by `model.kind: classifier` and `fusion`."""
    corrupt_text: float = Field(0.0, ge=0, le=1)
    """Share of the words of every row that are replaced by random ones, the same in every round: a noisy modality, on
    purpose. `model.kind: fusion` only."""
    max_tokens: int | None = Field(None, ge=2)
    """Cut token sequences to this length; the length in the file when not set."""
    image_mean: tuple[float, ...] = (0.5,)
    """Per-channel mean subtracted after scaling pixels to [0, 1]; one value serves all channels."""
    image_std: tuple[float, ...] = (0.5,)
    """Per-channel standard deviation; one value serves all channels."""
    random_crop: int = Field(0, ge=0)
    """Training pictures are padded by this many pixels (edge values) and cropped back at random. 0: off."""
    random_flip: bool = False
    """Mirror training pictures left to right at random. Not for chest X-rays, where sides matter."""
    memory_mib: int = Field(4096, ge=1)
    """Columns whose decoded size fits are held in memory; larger ones are read in chunk order with a shuffle buffer."""
    sidecar_dir: Path | None = None
    """Folder of what is computed from the packed file and kept: features of frozen encoders, completed rows. Default:
    the packed file's own. `model.kind: joint` only."""

    @model_validator(mode="after")
    def _has_source(self) -> DataConfig:
        if self.path is None and self.phantom is None:
            raise ValueError("nothing to read: set data.path to a packed file, or data.phantom: {} for generated data")
        return self


class DualEncoderConfig(Section):
    """Image and text encoders, an alignment block and a projection head each, one temperature (FedDRA, A.2)."""

    kind: Literal["dual_encoder"]
    image: EncoderConfig
    text: EncoderConfig
    align: bool = True
    """One transformer block after each encoder. False: heads read the encoders' features directly."""
    align_heads: int = Field(4, ge=1)
    """Attention heads of the alignment blocks; must divide both encoders' widths."""
    head_hidden: int = Field(2048, ge=1)
    """Hidden width of the projection heads."""
    embed_dim: int = Field(128, ge=2)
    """Width of the joint space."""
    head_norm: Literal["batch", "layer"] = "batch"
    """Normalisation in the projection heads; the paper's is batch."""
    temperature: float | None = Field(None, gt=0)
    """Similarities are divided by it, under any objective. Default: what the objective's paper publishes, 0.07 for clip
    and 0.1 for convirt, siglip and gloria."""
    learn_temperature: bool | None = None
    """Train the temperature (as its logarithm, of shape [1], in block `temperature`) from that value on. Default: only
    with siglip, as published."""


class ClassifierConfig(Section):
    """An image network with a class for each value of `data.label`: one for all clients, or several."""

    kind: Literal["classifier"]
    image: EncoderConfig | None = None
    """The network of all clients. A timm name; ``resnet10``, ``resnet12``, ``shufflenet`` or ``mobilenetv2``: small
    pictures' (docs/mdhfl.md); or ``cnn`` / ``cnn_tiny``: those of the throughput benchmark."""
    networks: list[EncoderConfig] | None = Field(None, min_length=1)
    """In place of `image`: client k has the (k mod length)-th of these. A bare name stands for {name: NAME}. Each item
    starts from weights of its own and stays in memory, so that clients of different items do not wait for each other.
    """
    embed_dim: int | None = Field(None, ge=1)
    """A linear layer brings each network's features to this width before the last layer; FedProto over different
    networks needs it."""
    head_dropout: float | None = Field(None, ge=0, lt=1)
    """Dropout before the last layer. Default: 0.5 for the two benchmark networks, else 0."""

    @field_validator("networks", mode="before")
    @classmethod
    def _bare_names(cls, value: Any) -> Any:
        return [{"name": v} if isinstance(v, str) else v for v in value] if isinstance(value, list) else value

    @model_validator(mode="after")
    def _one_source(self) -> ClassifierConfig:
        if (self.image is None) == (self.networks is None):
            raise ValueError(
                "set exactly one of model.image, the network of all clients, and model.networks, a list of them"
            )
        return self

    @property
    def encoders(self) -> list[EncoderConfig]:
        """One for all clients, or one for each item of `networks`."""
        if self.networks is not None:
            return self.networks
        assert self.image is not None, "the validator demands one of them"
        return [self.image]

    def of(self, client: int) -> ClassifierConfig:
        """The model of one client, as if it were that of all."""
        encoders = self.encoders
        return self.model_copy(update={"image": encoders[client % len(encoders)], "networks": None})


class PublicConfig(Section):
    """Pictures that all clients hold alike and compare their models on; labels are never read."""

    path: Path | None = None
    """Packed file. Not set, and no `phantom`: training rows of data.path, taken from the clients (whole patients)."""
    phantom: PhantomConfig | None = None
    """Generate the set instead: once, into ``data/``, or at `path` where that is given."""
    size: int | None = Field(None, ge=2)
    """Rows, drawn at random. Not set: all of the file. Required where rows are taken from the clients."""
    batch_size: int | None = Field(None, ge=2)
    """Rows a batch; a last smaller one is left out, unless it is the only one. Default: fit.batch_size."""
    classes: Literal["same", "any"] = "same"
    """any: a file whose column data.label has another number of classes than the clients' will do all the same."""

    @property
    def held_out(self) -> bool:
        """Rows come from the clients' own file."""
        return self.path is None and self.phantom is None

    @model_validator(mode="after")
    def _size_known(self) -> PublicConfig:
        if self.held_out and self.size is None:
            raise ValueError("set public.size, the training rows to take from the clients; or path or phantom")
        return self


Model = Annotated[DualEncoderConfig | ClassifierConfig | FusionConfig | JointConfig, Field(discriminator="kind")]


class DropoutConfig(Section):
    """Clients that are lost in a round, on purpose: what one of them would have put into it is missing."""

    probability: float = Field(gt=0, lt=1)
    """Of every client of the cohort, in every round: a pure function of (random_seed, round)."""
    when: Literal["before", "after"] = "before"
    """before: they never begin, and the cohort is smaller. after: they are lost in the round's first exchange, after
    their neighbours have masked against them, so that masks must be recovered (docs/security.md)."""


class CohortConfig(Section):
    """Which clients take part in a round: a pure function of (random_seed, round)."""

    size: int | None = Field(None, ge=1)
    """Clients a round, drawn without replacement. All of them when neither is set."""
    fraction: float | None = Field(None, gt=0, le=1)
    """The same as a share of all clients (rounded, at least one)."""
    dropout: DropoutConfig | None = None

    @model_validator(mode="after")
    def _one_way(self) -> CohortConfig:
        if self.size is not None and self.fraction is not None:
            raise ValueError("set cohort.size or cohort.fraction, not both")
        return self


class AggregationConfig(Section):
    """How contributions are summed over clients."""

    arithmetic: Literal["fixed_point", "float32"] = "fixed_point"
    """fixed_point: exact 64-bit integer sums, so any number of ranks gives the same bits. float32: half the bytes."""
    fraction_bits: int = Field(32, ge=8, le=52)
    """Bits behind the binary point. Fewer bits leave more range for large weights or values."""
    ring_bits: Literal[32, 64] = 64
    """Integers of fixed_point. 32: half the bytes, with fraction_bits: 20 or less; range is checked all the same."""
    secure: bool = False
    """Mask what every rank sends, so that only sums over clients become known to others (docs/security.md)."""
    min_contributors: int = Field(3, ge=3)
    """Under `secure`: a sum that fewer clients put something into is refused."""
    bucket_mib: int = Field(256, ge=1)
    """Contributions travel in buckets of this size."""
    robust: RobustRule | None = Field(None, discriminator="rule")
    """In place of the weighted mean: a rule that bears clients that send what they should not (docs/robust.md)."""
    compression: CompressionConfig | None = Field(None, discriminator="kind")
    """Updates cross in fewer bytes, one by one (docs/compression.md)."""
    local_blocks: list[str] = Field(default_factory=list)
    """What stays at its client and is never exchanged: ``batch_norm`` or ``norm`` for all layers of that kind (FedBN:
    Li et al. 2021), or shell patterns over names of tensors and blocks (``head/*``)."""


class EvaluationConfig(Section):
    """Per-client evaluation of the shared model (or of the clients' own, where a method shares none)."""

    every: int | None = Field(None, ge=1)
    """Evaluate on `split` after every this many rounds. Not set: only at the end."""
    split: Literal["val", "test"] = "val"
    final_split: Literal["val", "test"] = "test"
    """Split of the last evaluation, the one in the final table."""
    batch_size: int = Field(64, ge=2)
    """Also the candidate pool of in-batch retrieval."""
    num_resamples: int = Field(0, ge=0)
    """Fusion: 95 % intervals from this many bootstrap resamples of patients, by client and combination. 0: none."""
    match: list[str] | None = None
    """Retrieval: an item counts as correct when it agrees in all these label columns. Not set: identical text."""
    clients: Literal["shown", "mean"] | None = None
    """shown: all ranks see every client's metrics, and tables list them. mean: only their means over clients become
    known, as sums. Default: mean under aggregation.secure, else shown."""


class MeshConfig(Section):
    """Ranks = slots (axis client) x shard."""

    shard: int = Field(1, ge=1)
    """Ranks that train one client together, by DeepSpeed as `sharding` says. 1: every rank has whole clients."""


class ShardingConfig(Section):
    """How the ranks of a slot share one client's model: DeepSpeed ZeRO. Also with `mesh.shard: 1`, for offloading."""

    zero: Literal[1, 2, 3] = 3
    """What is sharded: optimizer states (1), gradients too (2), parameters too (3)."""
    offload_optimizer: bool = False
    """Keep optimizer states and float32 weights in the host's memory, and step there."""
    offload_parameters: bool = False
    """Keep parameters in the host's memory while they are not needed. ZeRO-3 only."""
    activation_checkpointing: bool = False
    """Encoders recompute their activations in the backward pass: less memory, a third more work."""


class RuntimeConfig(Section):
    """The process: device, threads, patience."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads_per_rank: int = Field(1, ge=1)
    """CPU threads of each rank. Results on CPU change with it, so it is never derived from the number of ranks."""
    timeout_s: float = Field(300.0, gt=0)
    """A rank that is silent for this long takes the job down."""
    time_margin_s: float = Field(60.0, ge=0)
    """In a Slurm allocation: a run stops at a checkpoint (exit code 75) when another round, as long as the longest so
    far, could end later than this many seconds before the allocation does."""


class CheckpointConfig(Section):
    """Checkpoints in RUN_DIR/checkpoints, written to a temporary name and renamed."""

    every: int = Field(1, ge=1)
    """Rounds between checkpoints; the last round always writes one."""
    keep: int = Field(2, ge=1)
    """The newest this many are kept."""


class ReportConfig(Section):
    """What rank 0 writes for people."""

    tensorboard: bool = True
    plots: bool = True
    """PNG curves in RUN_DIR/plots at the end."""


class RunConfig(Section):
    """A whole run. `fedhpc run FILE.yaml [dotted.key=value ...]`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names the run folder runs/NAME unless --run-dir is given."""
    random_seed: int = Field(0, ge=0, lt=2**63)
    rounds: int = Field(ge=1)
    data: DataConfig
    partition: Partition
    noise: Noise | None = Field(None, discriminator="kind")
    """Wrong training labels, on purpose. Validation and test labels stay as they are."""
    attack: Attack | None = Field(None, discriminator="kind")
    """FOR STUDIES: some clients send what they should not, on purpose (docs/robust.md)."""
    missing: MissingConfig | None = None
    """Training rows that lose a modality, on purpose (docs/fedmvp.md). Models that need both leave them out."""
    completion: CompletionConfig | None = Field(None, discriminator="method")
    """What stands in for a missing modality (docs/fedmvp.md). `model.kind: joint` only."""
    public: PublicConfig | None = None
    """Pictures that all clients hold, for algorithms that compare models on them (docs/mdhfl.md). Under other
    algorithms rows may be held out all the same, so that arms of a comparison train on the same ones."""
    model: Model
    modalities: ModalitiesConfig = Field(default_factory=ModalitiesConfig)
    objective: ObjectiveConfig | None = Field(None, discriminator="name")
    """What clients minimise. Default: clip for a dual encoder, fedmvp under algorithm.name: fedmvp, else
    cross_entropy."""
    fit: FitConfig
    algorithm: AlgorithmConfig = Field(default_factory=lambda: FedAvgConfig(name="fedavg"))
    cohort: CohortConfig = Field(default_factory=CohortConfig)
    aggregation: AggregationConfig = Field(default_factory=AggregationConfig)
    privacy: Privacy | None = Field(None, discriminator="unit")
    """Differential privacy, of clients or of training rows (docs/privacy.md)."""
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    mesh: MeshConfig = Field(default_factory=MeshConfig)
    sharding: ShardingConfig | None = None
    """Default: ZeRO-3 with mesh.shard above 1, else null: the whole model on one device, without DeepSpeed."""
    runtime: RuntimeConfig = Field(default_factory=RuntimeConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    report: ReportConfig = Field(default_factory=ReportConfig)

    @property
    def shows_clients(self) -> bool:
        """Whether an evaluation shows every client's metrics."""
        default = "mean" if self.aggregation.secure else "shown"
        return (self.evaluation.clients or default) == "shown"

    @property
    def fewest_owners(self) -> int | None:
        """Owners that a block needs to be summed, where clients own different ones."""
        masked = self.aggregation.min_contributors if self.aggregation.secure else None
        return masked if self.modalities.min_contributors is None else self.modalities.min_contributors

    @model_validator(mode="before")
    @classmethod
    def _shards_by_zero_3(cls, data: Any) -> Any:
        mesh = data.get("mesh") if isinstance(data, dict) else None
        shard = mesh.get("shard") if isinstance(mesh, dict) else None
        if isinstance(shard, int) and shard > 1 and data.get("sharding") is None:
            return {**data, "sharding": {}}
        return data
