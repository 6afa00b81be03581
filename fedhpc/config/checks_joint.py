"""Keys of `model.kind: joint`, of missing rows, their completion and FedMVP that fight each other or do nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from fedhpc.config.algorithms import DIFFERENT_NETWORKS, FedDRAConfig, LocalConfig, MoonConfig
from fedhpc.config.completion import GeneratorConfig, NeighbourConfig, PretrainedConfig
from fedhpc.config.joint import CreamFlConfig, FedMvpConfig, JointConfig
from fedhpc.config.objectives import CrossEntropyConfig, MvpConfig

if TYPE_CHECKING:
    from fedhpc.config.schema import RunConfig

Add = Callable[[str, str, str], None]
FEWEST = 4  # public rows from which clients' representations can be compared


def check_joint(config: RunConfig) -> Iterator[str]:
    """Problems, one line each."""
    model = config.model
    if not isinstance(model, JointConfig):
        yield from _without_joint(config)
        return
    yield from _shape(model)
    yield from _frozen(config, model)
    yield from _methods(config, model)
    if isinstance(config.algorithm, FedMvpConfig):
        yield from _public(config)
    if isinstance(config.algorithm, CreamFlConfig):
        yield from _public_pairs(config)


def _without_joint(config: RunConfig) -> Iterator[str]:
    kind = config.model.kind
    if isinstance(config.algorithm, FedMvpConfig):
        yield (
            f"algorithm.name = fedmvp but model.kind = {kind}, which has no joint representation; set model.kind: joint"
        )
    if isinstance(config.algorithm, CreamFlConfig):
        yield (
            f"algorithm.name = creamfl but model.kind = {kind}, which is no classifier over pictures and texts; set "
            "model.kind: joint"
        )
    if isinstance(config.objective, MvpConfig):
        yield f"objective.name = fedmvp but model.kind = {kind}; set model.kind: joint, or another objective"
    if config.completion is not None:
        yield f"completion is set but model.kind = {kind} leaves incomplete rows out; remove it, or set kind: joint"


def _shape(model: JointConfig) -> Iterator[str]:
    if len(model.modalities) == 1:
        return
    if model.concat == "features" and model.width % 2:
        yield f"model.width = {model.width} but model.concat = features halves it; set an even width"
    for key, width in (("cross_heads", model.narrow), ("joint_heads", model.width)):
        heads = getattr(model, key)
        if width % heads:
            fits = max(h for h in range(1, heads + 1) if width % h == 0)
            yield f"model.{key} = {heads} does not divide the width of its layers, {width}; set model.{key}: {fits}"


def _frozen(config: RunConfig, model: JointConfig) -> Iterator[str]:
    if model.cache and not model.frozen:
        moving = [f"model.{name}" for name in model.modalities if not getattr(model, name).freeze]
        yield f"model.cache = true but {' and '.join(moving)} trains; set freeze: true there, or model.cache: false"
    data = config.data
    if model.cache and (data.random_crop or data.random_flip):
        key = "random_crop" if data.random_crop else "random_flip"
        yield (
            f"data.{key} is set but model.cache = true keeps the features of pictures as they are; set model.cache: "
            "false, or remove it"
        )
    if config.completion is None:
        if model.hide_completed:
            yield "model.hide_completed is set but nothing is completed; remove it, or set completion"
        return
    if isinstance(config.completion, NeighbourConfig) and config.completion.same_label and config.noise is not None:
        yield "completion.same_label goes by the labels of the file, which noise changes; remove one of both"
    if len(model.modalities) == 1:
        yield f"completion is set but the model reads {model.modalities[0]} only; remove it"
    if not model.cache:
        yield "completion works in the space of cached frozen features; set model.cache: true"
    if isinstance(config.completion, GeneratorConfig) and model.pictures == "patches":
        yield "completion.method = generator makes features, but model.pictures = patches; set model.pictures: tokens"


def _methods(config: RunConfig, model: JointConfig) -> Iterator[str]:
    algorithm, objective = config.algorithm, config.objective
    if isinstance(algorithm, MoonConfig | FedDRAConfig) or (
        isinstance(algorithm, DIFFERENT_NETWORKS) and not isinstance(algorithm, LocalConfig | CreamFlConfig)
    ):
        yield (
            f"algorithm.name = {algorithm.name} but model.kind = joint; set fedmvp, creamfl, fedavg, fedprox, "
            "fedopt, scaffold, qffl, afl, local or centralised"
        )
    if objective is not None and not isinstance(objective, CrossEntropyConfig | MvpConfig):
        yield f"objective.name = {objective.name} but model.kind = joint; set fedmvp or cross_entropy"
    by_pairs = isinstance(algorithm, FedMvpConfig | CreamFlConfig)
    if (by_pairs or isinstance(objective, MvpConfig)) and len(model.modalities) == 1:
        what = f"algorithm.name = {algorithm.name}" if by_pairs else "objective.name = fedmvp"
        yield f"{what} but the model reads {model.modalities[0]} only; add the other encoder, or set fedavg"
    if config.sharding is not None:
        yield "model.kind = joint does not work on shards; set mesh.shard: 1 and sharding: null"


def _public(config: RunConfig) -> Iterator[str]:
    public, algorithm = config.public, config.algorithm
    assert isinstance(algorithm, FedMvpConfig)
    if public is None:
        return  # said already
    if public.size is not None and public.size < FEWEST:
        yield (
            f"public.size = {public.size}: of fewer than {FEWEST} rows no likeness between clients can be told; set "
            f"{FEWEST} or more, better 512"
        )
    size = public.batch_size or config.fit.batch_size
    if algorithm.cka == "unbiased_minibatch" and size < FEWEST:
        key = "public.batch_size" if public.batch_size else "fit.batch_size"
        yield f"{key} = {size} but algorithm.cka = unbiased_minibatch needs {FEWEST} rows; set public.batch_size"


def _public_pairs(config: RunConfig) -> Iterator[str]:
    public, size = config.public, config.fit.batch_size
    if public is not None and public.batch_size is None and size < 2:
        yield (
            f"fit.batch_size = {size} but algorithm.name = creamfl tells the rows of a public batch from each other; "
            "set public.batch_size: 32"
        )


def idle_in_joint(config: RunConfig, add: Add) -> None:
    """Calls add(section, keys, why) for keys without effect."""
    model, algorithm = config.model, config.algorithm
    if isinstance(algorithm, CreamFlConfig) and not (algorithm.inter or algorithm.intra):
        add("algorithm", "temperature", "with inter: 0 and intra: 0")
    if isinstance(algorithm, CreamFlConfig) and not algorithm.server_epochs:
        add("algorithm", "server_temperature", "with server_epochs: 0")
    if config.missing is not None and config.missing.rule != "label":
        add("missing", "label", f"with missing.rule: {config.missing.rule}")
    if config.missing is not None and config.missing.rule == "random":
        add("missing", "strength", "with missing.rule: random")
    if isinstance(config.completion, PretrainedConfig) and config.completion.candidates == 1:
        add("completion", "clip", "with candidates: 1")
    if not isinstance(model, JointConfig):
        add("data", "sidecar_dir", f"with model.kind: {model.kind}")
        return
    add("evaluation", "match", "with model.kind: joint, which retrieves nothing")
    if not model.cache:
        add("data", "sidecar_dir", "with model.cache: false")
    if model.text is None:
        add("data", "max_tokens", "without model.text")
    if len(model.modalities) == 1:
        add("model", "pictures patch concat cross_heads joint_heads joint_layers", "with one modality")
        add("model", "missing", "with one modality: a row without it is left out")
    elif model.pictures == "tokens":
        add("model", "patch", "with pictures: tokens")
