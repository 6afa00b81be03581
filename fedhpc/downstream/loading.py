"""A run's model and its weights, from its folder, in one process: for evaluation and export."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedhpc.algorithms.registry import build_algorithm
from fedhpc.client.client import LOCAL_STATE, derived_seed
from fedhpc.client.residence import OWN_MODEL
from fedhpc.comm.collectives import Collectives
from fedhpc.comm.ledger import Ledger
from fedhpc.comm.mesh import Mesh
from fedhpc.config.load import load_config
from fedhpc.config.schema import ClassifierConfig, FusionConfig, JointConfig, RunConfig
from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.packers.phantom import ensure_phantom
from fedhpc.data.select import client_rows, data_spec, unseen_clients
from fedhpc.federation.checkpoint import Checkpoints, load_blocks
from fedhpc.federation.rounds import own_state
from fedhpc.interfaces import Algorithm, Block, Blocks, ClientId, ClientState, DataSpec
from fedhpc.models.blocks import FlatModel
from fedhpc.models.zoo import build_model, build_networks

SHARED = "the shared model"
ASK = "evaluate: client=NAME, export: --client NAME"  # how a client's own model is asked for


@dataclass(frozen=True)
class TrainedRun:
    """A run's model with the weights of its newest checkpoint, in eval mode.

    Attributes:
        weights: whose weights these are, in words.
        client: the client whose own model this is; None for the shared one.
        notes: what a reader of results should know of them.
        names: of the run's clients, by id.
        train_sites: sites of the file with a training row at some client.
        tokenizer_json: of the run's own packed file; None where it has no text.
        read: where `module` is there for its structure alone (streamed.py), gives its tensors by name.
    """

    folder: Path
    config: RunConfig
    spec: DataSpec
    module: nn.Module
    device: torch.device
    checkpoint: Path
    rounds_done: int
    weights: str
    notes: tuple[str, ...]
    names: dict[ClientId, str]
    train_sites: frozenset[str]
    data_path: Path
    checksum: str
    tokenizer_json: str | None
    client: ClientId | None
    read: Callable[[str], Tensor] | None = None

    def value(self, name: str) -> Tensor:
        """One tensor of the model's state dict."""
        return self.module.state_dict()[name] if self.read is None else self.read(name)


def load_run(folder: Path, client: int | str | None = None, device: torch.device | None = None) -> TrainedRun:
    """The model of a run folder (config.yaml and checkpoints/). Sets torch's threads to runtime.threads_per_rank.

    client: id or name of the client whose own model is meant, where clients differ (`local`, local blocks). Without it
    local blocks are the plain mean over the clients that kept some.

    Raises:
        ValueError: no run there, its data are gone or others, its weights do not fit, or `client` is needed, unknown or
            without effect.
    """
    opened = open_folder(folder)
    device = device or torch.device("cpu")
    config, names = opened.config, opened.names
    networks = _networks(config, opened.spec, device)
    own = None if client is None else _id_of(names, client)
    item = _item(config, names, own)
    weights = networks[item]
    chosen = _Weights(config, weights, opened.checkpoints, opened.checkpoint, names, networks)
    blocks, whose, notes = chosen.choose(own)
    weights.load(blocks)
    return opened.trained(weights.module.eval(), device, whose, notes, _of_client(config, item), own)


@dataclass(frozen=True)
class Opened:
    """What a run folder says of a run, but for its weights."""

    folder: Path
    config: RunConfig
    spec: DataSpec
    checkpoints: Checkpoints
    checkpoint: Path
    names: dict[ClientId, str]
    train_sites: frozenset[str]
    data_path: Path
    checksum: str
    tokenizer_json: str | None

    def trained(
        self,
        module: nn.Module,
        device: torch.device,
        whose: str,
        notes: Sequence[str] = (),
        config: RunConfig | None = None,
        client: ClientId | None = None,
    ) -> TrainedRun:
        """The run with `module`; config: as if the client's network were that of all."""
        done = int(self.checkpoints.load_loop(self.checkpoint)["rounds_done"])
        unfinished = [f"the run is not finished: {done} of {self.config.rounds} rounds"]
        return TrainedRun(
            self.folder, config or self.config, self.spec, module, device, self.checkpoint, done, whose,
            (*notes, *(unfinished if done < self.config.rounds else [])), self.names, self.train_sites, self.data_path,
            self.checksum, self.tokenizer_json, client,
        )  # fmt: skip


def open_folder(folder: Path) -> Opened:
    """Raises ValueError as `load_run`. Sets torch's threads to runtime.threads_per_rank."""
    config = read_config(folder)
    torch.set_num_threads(config.runtime.threads_per_rank)
    checkpoints = _checkpoints(folder)
    newest = checkpoints.latest()
    if newest is None:
        raise ValueError(f"{folder} has no checkpoint yet; let `fedhpc run` finish a round with --run-dir {folder}")
    if isinstance(config.model, FusionConfig | JointConfig):
        raise ValueError(
            f"{folder} has model.kind: {config.model.kind}, whose classifiers are evaluated in the run itself "
            "(results.json); `fedhpc evaluate` and `fedhpc export` take dual encoders and image classifiers"
        )
    with _own_file(folder, config) as packed:
        spec = data_spec(packed, config)
        dealt = client_rows(packed, config)
        site, site_names = packed.read("site"), packed.site_names
        unseen = unseen_clients(config, dealt)
        trained = [c for c in dealt if c.id not in unseen]
        train_sites = frozenset(site_names[code] for c in trained for code in set(site[c.train].tolist()))
        path, checksum, tokenizer = packed.path, packed.checksum, packed.tokenizer_json
    names = {c.id: c.site for c in dealt}
    return Opened(folder, config, spec, checkpoints, newest, names, train_sites, path, checksum, tokenizer)


def _networks(config: RunConfig, spec: DataSpec, device: torch.device) -> list[FlatModel]:
    """The run's model, or its several networks, as they were before the first round."""
    several = config.model.networks if isinstance(config.model, ClassifierConfig) else None
    built = []
    for item in range(len(several or (None,))):
        # Frozen weights are in no checkpoint.
        if several is None:
            module = first_model(config, spec).to(device)
        else:
            assert isinstance(config.model, ClassifierConfig)
            torch.manual_seed(derived_seed(config.random_seed, "model", item))
            module = build_networks(config.model, spec, item).to(device)
        if config.fit.channels_last:
            module = module.to(memory_format=torch.channels_last)
        built.append(FlatModel(module, config.aggregation.local_blocks))
    return built


def first_model(config: RunConfig, spec: DataSpec) -> nn.Module:
    """The one network of a run, as it was before the first round."""
    torch.manual_seed(derived_seed(config.random_seed, "model"))
    return build_model(config.model, spec, config.objective)


def _item(config: RunConfig, names: dict[ClientId, str], client: ClientId | None) -> int:
    """Which of model.networks a client has. Raises ValueError when they differ and no client is named."""
    if not isinstance(config.model, ClassifierConfig) or config.model.networks is None:
        return 0
    if client is None:
        raise ValueError(f"clients have different networks; name one ({ASK}): {_listed(names)}")
    return client % len(config.model.networks)


def _of_client(config: RunConfig, item: int) -> RunConfig:
    """The config as if the client's network were that of all."""
    if not isinstance(config.model, ClassifierConfig) or config.model.networks is None:
        return config
    return config.model_copy(update={"model": config.model.of(item)})


def read_config(folder: Path) -> RunConfig:
    """The config that a run folder began with. Raises ValueError when there is none or it is not valid."""
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"{folder} is no run folder: it has no config.yaml; give the --run-dir of a `fedhpc run`")
    return load_config(folder / "config.yaml")


def _own_file(folder: Path, config: RunConfig) -> PackedFile:
    """The packed file that the run was trained on. What the model is built from - sizes, classes, tokenizer, who its
    clients are - stands there and nowhere else."""
    path = config.data.path
    if config.data.phantom is not None:
        path = ensure_phantom(config.data.phantom, config.data.path)
    assert path is not None, "the schema demands one of them"
    if not path.is_file():
        raise ValueError(
            f"the run's own packed file {path} is not there, and the model is built from it (sizes, classes, "
            f"tokenizer); start from the folder that the run was started in, or correct data.path in "
            f"{folder / 'config.yaml'}"
        )
    return PackedFile(path)


def _checkpoints(folder: Path) -> Checkpoints:
    alone = Collectives(Mesh(rank=0, world=1, shard=1, group=None), Ledger(), 1 << 20)
    return Checkpoints(folder / "checkpoints", 1, alone, torch.device("cpu"))


@dataclass
class _Standing:
    """As much of a Federation and of a Client as `setup` and `personal` ask for when nothing is trained."""

    initial: Blocks
    clients: Sequence[ClientId]
    id: ClientId = 0
    state: ClientState = field(default_factory=dict)
    networks: Sequence[Blocks] = ()

    @property
    def own(self) -> Blocks:
        blocks: Blocks = self.state.get(OWN_MODEL, {})
        return blocks

    @property
    def cohort(self) -> Sequence[ClientId]:
        return self.clients


@dataclass(frozen=True)
class _Weights:
    """Finds the weights that are asked for."""

    config: RunConfig
    model: FlatModel
    checkpoints: Checkpoints
    path: Path
    names: dict[ClientId, str]
    networks: Sequence[FlatModel]

    def choose(self, client: ClientId | None) -> tuple[dict[str, Block], str, list[str]]:
        """Blocks for the whole model, whose they are, notes."""
        algorithm = self._algorithm()
        name = self.config.algorithm.name
        if client is None and not algorithm.shared:
            raise ValueError(
                f"algorithm.name: {name} shares no model; name one of its clients ({ASK}): {self._known()}"
            )
        if client is None:
            whose = SHARED
            blocks = dict(algorithm.shared)
            notes = []
            if self.model.local:
                local, count = self._mean_local()
                blocks |= local
                kept = ", ".join(self.config.aggregation.local_blocks)
                whose += f", with the mean of {count} clients' own layers ({kept})"
                notes.append(
                    f"aggregation.local_blocks: {kept} are never exchanged: their plain mean over the {count} clients "
                    f"that have them stands in; {ASK} takes a client's own model"
                )
        else:
            blocks, whose, notes = self._own(algorithm, client)
        missing = sorted(set(self.model.blocks) - set(blocks))
        if missing:
            raise ValueError(
                f"algorithm.name: {name} leaves {', '.join(missing)} to its clients; name one of them ({ASK}): "
                f"{self._known()}"
                if client is None
                else f"{whose} lacks {', '.join(missing)}; it does not have the whole model of the config"
            )
        return blocks, whose, notes

    def _algorithm(self) -> Algorithm:
        """The algorithm as it stood when the checkpoint was written."""
        algorithm = build_algorithm(self.config.algorithm)
        initial = {name: block.clone() for name, block in self.model.shared.items()}
        networks = [{name: b.clone() for name, b in one.shared.items()} for one in self.networks]
        standing: Any = _Standing(initial, tuple(self.names), networks=networks)
        algorithm.setup(standing)
        for name, block in load_blocks(self.path, algorithm.shared).items():
            algorithm.shared[name].flat.copy_(block.flat)
        algorithm.load_state_dict(own_state(self.checkpoints.load_algorithm(self.path, self.model.shared)))
        return algorithm

    def _own(self, algorithm: Algorithm, client: ClientId) -> tuple[dict[str, Block], str, list[str]]:
        state = self.checkpoints.load_states(self.path, [client], self.model.blocks).get(client, {})
        standing: Any = _Standing({}, tuple(self.names), client, state)
        own = algorithm.personal(standing)
        shared = algorithm.shared
        if not self.model.local and own.keys() == shared.keys() and all(_same(own[b], shared[b]) for b in own):
            raise ValueError(
                f"client: {self.names[client]} has no effect: all clients of a run with algorithm.name: "
                f"{self.config.algorithm.name} share one model; leave it out"
            )
        local = state.get(LOCAL_STATE, {})
        if (self.model.local and not local) or (not shared and not state):
            raise ValueError(
                f"client: {self.names[client]} has kept nothing of its own: it has not taken part in a round yet; "
                "name another client, or wait for more rounds"
            )
        return {**own, **local}, f"client {client} ({self.names[client]})", []

    def _mean_local(self) -> tuple[dict[str, Block], int]:
        """Plain mean of the clients' own blocks, and how many clients have some. One client in memory at a time."""
        total = {name: torch.zeros(block.flat.shape, dtype=torch.float64) for name, block in self.model.local.items()}
        count = 0
        for client in self.names:
            state = self.checkpoints.load_states(self.path, [client], self.model.blocks).get(client, {})
            if LOCAL_STATE in state:
                count += 1
                for name, flat in total.items():
                    flat += state[LOCAL_STATE][name].flat.double()
        if not count:
            raise ValueError(
                f"no client has kept aggregation.local_blocks: {', '.join(self.config.aggregation.local_blocks)} in "
                f"{self.path}; the checkpoint is incomplete, so let the run go on for a round"
            )
        layouts = {name: block.layout for name, block in self.model.local.items()}
        return {name: Block((flat / count).float(), layouts[name]) for name, flat in total.items()}, count

    def _known(self) -> str:
        return _listed(self.names)


def _id_of(names: Mapping[ClientId, str], client: int | str) -> ClientId:
    """Of a number or a name. Raises ValueError for one that the run does not know."""
    for known, name in names.items():
        if client in (known, name, str(known)):
            return known
    raise ValueError(f"client: {client} is no client of the run; it has {_listed(names)}")


def _listed(names: Mapping[ClientId, str]) -> str:
    shown = [f"{c} ({name})" for c, name in names.items()]
    return ", ".join(shown[:10]) + (f" and {len(shown) - 10} more" if len(shown) > 10 else "")


def _same(a: Block, b: Block) -> bool:
    return a.layout == b.layout and torch.equal(a.flat, b.flat)


def image_encoder(module: nn.Module) -> Any:
    """The image encoder of a dual encoder or a classifier: `.features(images)` -> [B,width], `.width`."""
    return module.image_encoder if hasattr(module, "image_encoder") else module.encoder
