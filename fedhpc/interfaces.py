"""The words and shapes that all of fedhpc is built from. Read this first.

An algorithm is one round, written as straight-line SPMD code over per-client values. Every rank runs the same
statements; a rank hosts some of the clients (or none), and what leaves a client does so through :class:`Federation`.

Three rules keep it safe:

1. Every rank executes the same statements, so collectives cannot get out of order. Shapes and names of what is
summed are
   given by the caller (``like``, ``shape``, ``metrics``), so that a rank without any client of the cohort can join.
2. ``reduce``, ``mean`` and ``sum`` let only sums leave a client.
3. ``gather`` shows each client's own row to all: only for names that the algorithm lists in ``reveals``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

ClientId = int
BlockName = str  # "encoder/image", "align/text", "head/image", ...
Batch = Mapping[str, Tensor]  # "image" [B,C,H,W], "tokens" [B,L], "label" [B], "row" [B], ...
Split = Literal["train", "val", "test"]
R = TypeVar("R")
PerClient = Mapping[ClientId, R]  # one value per client hosted by THIS rank, never another rank's


# --------------------------------------------------------------------------------------------------------- blocks
class TensorSpec(NamedTuple):
    """Where a tensor lies in its block's flat buffer. Offsets are multiples of 16 elements (64 bytes): what vectorised
    CPU kernels compute must not depend on where a tensor happens to start."""

    name: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]  # dense, but not always row-major: channels_last weights keep their order
    offset: int  # in elements, from the start of the block
    trainable: bool  # False: a buffer such as BatchNorm's running mean


class Piece(NamedTuple):
    """What a shard holds of a tensor: the stretch [start, start + numel) of its elements in row-major order."""

    shape: tuple[int, ...]  # of the whole tensor
    start: int


@dataclass(frozen=True)
class Layout:
    """The tensors of one block: all trainable ones first, then float buffers."""

    specs: tuple[TensorSpec, ...]
    numel: int  # length of the flat buffer, padding included
    trainable_numel: int  # its first part, padding included
    pieces: tuple[Piece, ...] | None = None  # of a sharded block, whose tensors are pieces [n]; n may be 0

    def trainable(self) -> Layout:
        """Of the trainable tensors alone."""
        kept = [i for i, spec in enumerate(self.specs) if spec.trainable]
        pieces = None if self.pieces is None else tuple(self.pieces[i] for i in kept)
        return Layout(tuple(self.specs[i] for i in kept), self.trainable_numel, self.trainable_numel, pieces)


class Block(Mapping[str, Tensor]):
    """Named float32 tensors that are exchanged together, as views of one flat buffer [layout.numel].

    Behaves as a mapping from tensor name to tensor; `flat` is the whole, for arithmetic in one stroke. Padding is
    zero in parameters and updates, so that it never matters.
    """

    __slots__ = ("flat", "layout")

    def __init__(self, flat: Tensor, layout: Layout) -> None:
        assert flat.shape == (layout.numel,), (flat.shape, layout.numel)
        self.flat = flat
        self.layout = layout

    def __getitem__(self, name: str) -> Tensor:
        for spec in self.layout.specs:
            if spec.name == name:
                return self.view(spec)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (spec.name for spec in self.layout.specs)

    def __len__(self) -> int:
        return len(self.layout.specs)

    def view(self, spec: TensorSpec) -> Tensor:
        return self.flat.as_strided(spec.shape, spec.stride, self.flat.storage_offset() + spec.offset)

    @property
    def trainable(self) -> Tensor:
        """Flat view of the trainable tensors, without buffers."""
        return self.flat[: self.layout.trainable_numel]

    @property
    def buffers(self) -> Tensor:
        """Flat view of the float buffers (running statistics)."""
        return self.flat[self.layout.trainable_numel :]

    def clone(self) -> Block:
        return Block(self.flat.clone(), self.layout)

    def new_zeros(self) -> Block:
        return Block(torch.zeros_like(self.flat), self.layout)

    def __repr__(self) -> str:
        return f"Block({len(self)} tensors, {self.layout.numel} elements)"


Blocks = Mapping[BlockName, Block]


# ----------------------------------------------------------------------------------------------------------- data
@dataclass(frozen=True)
class FusionSpec:
    """What a classifier over several modalities must know of who holds what. A combination is the modalities of a
    client, in the model's order."""

    columns: Mapping[str, int] = field(default_factory=dict)  # of each tabular modality
    heads: tuple[tuple[str, ...], ...] = ()  # combinations that have a classifier
    head_of: Mapping[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict)  # where it is another's
    probes: tuple[str, ...] = ()  # modalities with a classifier that does not move them
    beside: Literal["none", "single", "all"] = "none"  # further heads that train with a client's own: those of its
    # single modalities, or of all combinations within what it holds


@dataclass(frozen=True)
class DataSpec:
    """What a model must know of the data to be built: identical on every rank."""

    image_channels: int = 0  # 0: the set has no pictures
    image_size: tuple[int, int] = (0, 0)  # height, width in pixels
    vocab_size: int = 0  # 0: the set has no text
    max_tokens: int = 0
    pad_token: int = 0
    num_classes: int = 0  # of data.label; 0 when none is learned
    fusion: FusionSpec = field(default_factory=FusionSpec)


# -------------------------------------------------------------------------------------------------------- clients
@dataclass(frozen=True)
class Budget:
    """How long a client trains: optimizer steps, or passes over its training rows. Exactly one is set."""

    steps: int | None = None
    epochs: float | None = None


@dataclass(frozen=True)
class GradientTerm:
    """What the engine adds to the gradient w.r.t. weights w before each step; works on shards too.

    grad += pull * (w - toward) + offset. FedProx: pull = mu, toward = shared. SCAFFOLD: offset = c - c_i.
    Blocks that a mapping lacks get nothing. Buffers are never touched.
    """

    pull: float = 0.0
    toward: Blocks | None = None
    offset: Blocks | None = None


@dataclass(frozen=True)
class FitReport:
    """What a client's turn came to."""

    loss: float  # mean over the steps
    steps: int
    examples: int  # training rows seen, with repetition
    seconds: float
    rate_sum: float  # learning rates of all steps, summed; before lr_scale


@dataclass(frozen=True)
class EvalReport:
    """Metrics of one client on one split; `examples` rows were scored."""

    metrics: Mapping[str, float]
    examples: int


ClientState = dict[str, Any]  # str -> Tensor | Block | Blocks | JSON value; survives rounds, ranks and restarts
Objective = Callable[[nn.Module, Batch], Tensor]  # (model, batch) -> scalar loss
Loss = Callable[[Mapping[str, Tensor], Batch], Tensor]  # (a model's outputs on a batch, the batch) -> scalar loss


class Client(Protocol):
    """One data owner, however many ranks train it. Handed to the functions given to each/reduce, valid inside them."""

    id: ClientId
    site: str
    modalities: frozenset[str]
    num_examples: int  # training rows
    blocks: frozenset[BlockName]  # that it owns
    state: ClientState  # lives on the CPU between turns
    loss: Loss  # what the config minimises

    @property
    def own(self) -> Blocks:
        """Its own model, as its last turn left it: its network's first weights before that. Not to be changed."""

    def resume(self) -> None:
        """Take up its own model. What is then done to it is kept, between turns and in checkpoints, until `load` puts
        other weights in its place."""

    def load(self, shared: Blocks) -> None:
        """Take over the shared blocks that it owns."""

    def read(self) -> Blocks:
        """Views of its present weights, valid until its slot turns to the next client. ``clone()`` what is to stay."""

    def update(self, since: Blocks) -> Blocks:
        """Present weights minus `since`, for the blocks in `since` that it owns. Valid as long as `read`'s views."""

    def fit(
        self,
        budget: Budget | None = None,
        objective: Objective | None = None,
        *,
        batches: Iterable[Batch] | None = None,
        train: Sequence[BlockName] | None = None,
        lr_scale: Mapping[BlockName, float] | None = None,
        gradient: GradientTerm | None = None,
        after_step: Callable[[int, int], None] | None = None,
    ) -> FitReport:
        """Train on its own rows (or on `batches`).

        budget, objective: the config's when not given. train: the blocks that move; all when not given, the others stay
        frozen and in eval mode. lr_scale: a factor on the learning rate of a block. after_step(done, steps) is called
        after every optimizer step, so that weights on the way can be read.
        Raises FloatingPointError, with the client's id, when the loss is not finite.
        """

    def respond(self, batch: Batch, output: str) -> Tensor:
        """One named output in train mode, without gradients. A `step` on the same batch goes back through this very
        pass where nothing took its place meanwhile, else it makes the pass again, to the same bits. Without such a step
        it leaves no trace."""

    def step(self, batch: Batch, loss: Loss, *, rate: float | None = None, fresh: bool = False) -> float:
        """One optimizer step of everything on one batch; its loss. Moments are apart from those of `fit`, and belong to
        its own model. rate: the learning rate, the config's when not given. fresh: moments start from zero.

        Raises FloatingPointError when the loss is not finite.
        """

    def batches(self, split: Split) -> Iterator[Batch]:
        """Its rows in order, without augmentation."""

    def evaluate(self, split: Split) -> EvalReport:
        """Score its present weights on its own rows."""

    def measure(self, split: Split, loss: Loss | None = None, *, fraction: float = 1.0) -> float:
        """Mean loss (the config's when not given) of its present weights on a random `fraction` of its own rows, in
        eval mode. Over batches of one size for all clients (fit.batch_size, or the smallest client's rows in the split
        where these are fewer), a last smaller one left out: contrastive losses grow with the batch.

        Raises ValueError when the split has fewer than 2 rows.
        """

    def forward(self, batch: Batch, output: str) -> Tensor:
        """One named output of the model in eval mode, without gradients: "image", "text", "logits", ..."""

    def outputs(self, batch: Batch) -> Mapping[str, Tensor]:
        """All outputs of the model in eval mode, without gradients."""

    def reference(self, blocks: Blocks, name: str = "anchor") -> Callable[[Batch], Mapping[str, Tensor]]:
        """All outputs of the model under other weights, without gradients: an anchor for objectives.

        Normalised by the batch as the training model is (else an exact copy would not give the same outputs), without
        dropout. A second resident model a `name`, made when first asked for. Valid inside the function that asked.
        """

    def dot(self, a: Blocks, b: Blocks) -> float:
        """Sum of products over trainable tensors of the blocks in both, complete even when the client is sharded."""


# ----------------------------------------------------------------------------------------------------- federation
@dataclass(frozen=True)
class Contribution:
    """What a client puts into a weighted mean. Blocks it lacks count with weight 0."""

    blocks: Blocks
    weight: float
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Reduced:
    """What came out: identical on every rank."""

    mean: Blocks  # weighted mean per block over its owners; blocks that nobody contributed are left out
    weight: Mapping[BlockName, float]  # summed weight per block
    metrics: Mapping[str, float]  # weighted means


class Federation(Protocol):
    """All that an algorithm sees of the cluster. Every method is called by every rank."""

    @property
    def clients(self) -> Sequence[ClientId]:
        """All that train."""

    @property
    def cohort(self) -> Sequence[ClientId]:
        """Those of this round: identical on every rank, a pure function of (random_seed, round)."""

    @property
    def public(self) -> Sequence[Batch]:
        """Unlabeled data, identical on every rank."""

    @property
    def initial(self) -> Blocks:
        """The shared blocks before the first round; empty where clients have different networks."""

    @property
    def networks(self) -> Sequence[Blocks]:
        """The first weights of each network: one, or several of which client k has the (k mod length)-th."""

    @property
    def rounds(self) -> int:
        """Of the whole run."""

    def generator(self, what: str) -> torch.Generator:
        """Randomness that all ranks share: on the CPU, a pure function of (random_seed, round, what)."""

    def each(self, fn: Callable[..., R], *inputs: PerClient[Any]) -> PerClient[R]:
        """fn(client, *its inputs) for every client of the cohort hosted here; keeps what fn returns."""

    def reduce(
        self, fn: Callable[..., Contribution], *inputs: PerClient[Any], like: Blocks, metrics: Sequence[str] = ()
    ) -> Reduced:
        """Weighted mean of what fn(client, *its inputs) contributes. Summed at once: memory does not grow with the
        number of clients on a rank. `like` names the blocks (and gives their layout), `metrics` the metrics."""

    def mean(self, values: PerClient[Blocks], weights: PerClient[float], *, like: Blocks) -> Blocks:
        """Weighted mean of values kept by `each`."""

    def sum(self, values: PerClient[Tensor], *, shape: Sequence[int] = ()) -> Tensor:
        """Sum over the cohort's clients: float64 [*shape], exact in fixed point."""

    def gather(self, what: str, values: PerClient[Tensor], *, shape: Sequence[int] = ()) -> Tensor:
        """Everybody's own row, float64 [len(cohort), *shape] in cohort order. `what` must be one of the reveals."""


class Algorithm(Protocol):
    """One federated method. Owns the shared blocks; everything else it needs again goes into state_dict."""

    reveals: ClassVar[frozenset[str]]  # names it may gather
    stateful: ClassVar[bool]  # clients keep state between rounds, so they stay where their state is
    losses_on: Split | None  # every client's loss is measured on this split, so none may be empty there

    @property
    def shared(self) -> Blocks:
        """Identical on every rank; empty where a method shares none."""

    def setup(self, fed: Federation) -> None: ...

    def round(self, fed: Federation, index: int) -> Mapping[str, float]:
        """Rounds count from 0. Returns metrics, identical on every rank."""

    def personal(self, client: Client) -> Blocks:
        """The blocks to evaluate at a client: the shared ones, or its own."""

    def state_dict(self) -> dict[str, Any]:
        """Everything but `shared` and client state: str -> Tensor | Blocks | JSON value. Identical on every rank."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
