"""Keys that fight each other, or have no effect, where clients own their networks: label noise and public data too."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fedhpc.config.algorithms import DIFFERENT_NETWORKS, ON_PUBLIC_DATA
from fedhpc.config.distillation import FedProtoConfig, MdhflConfig
from fedhpc.config.fields import shown
from fedhpc.config.joint import CreamFlConfig, FedMvpConfig
from fedhpc.config.schema import (
    ClassifierConfig,
    ColumnPartition,
    DualEncoderConfig,
    GroupsPartition,
    RunConfig,
)

FEWEST = 3  # clients in a sum: of two, each knows the other's part


def check_distillation(config: RunConfig) -> Iterator[str]:
    """Problems, one line each."""
    algorithm, model, name = config.algorithm, config.model, config.algorithm.name
    networks = model.networks if isinstance(model, ClassifierConfig) else None
    if config.noise is not None and isinstance(model, DualEncoderConfig):
        yield f"noise is for model.kind: classifier, fusion or joint, and model.kind = {model.kind}; remove noise"
    if networks is not None and not isinstance(algorithm, DIFFERENT_NETWORKS):
        yield (
            f"model.networks with algorithm.name = {name}, which needs one network for all; set model.image, "
            "or algorithm.name: mdhfl, rhfl, fedmd, feddf, fedproto or local"
        )
    for item, encoder in enumerate(networks or ()):
        if "num_classes" in encoder.options:
            yield (
                f"model.networks[{item}].options.num_classes = {shown(encoder.options['num_classes'])}: every client "
                "scores the classes of data.label, or sums over clients would mean nothing; remove it"
            )
    if config.public is not None and not config.public.held_out and not isinstance(algorithm, ON_PUBLIC_DATA):
        yield f"public is set but algorithm.name = {name} never looks at public data; remove it"
    if config.public is None and isinstance(algorithm, ON_PUBLIC_DATA):
        yield f"algorithm.name = {name} compares models on public data; set public: {{size: 1000}} or public.path"
    if not isinstance(algorithm, (*ON_PUBLIC_DATA, FedProtoConfig)):
        return
    if isinstance(algorithm, FedMvpConfig | CreamFlConfig):
        pass  # checks_joint
    elif not isinstance(model, ClassifierConfig):
        yield f"algorithm.name = {name} but model.kind = {model.kind}, which has no classes; set model.kind: classifier"
    elif isinstance(algorithm, FedProtoConfig) and networks is not None and len(networks) > 1 and not model.embed_dim:
        yield (
            "algorithm.name = fedproto compares features, and those of different networks differ in width; "
            "set model.embed_dim: 128, for example"
        )
    yield from _too_few(config)


def _too_few(config: RunConfig) -> Iterator[str]:
    """A sum over two clients shows each what the other put in."""
    partition, cohort, name = config.partition, config.cohort, config.algorithm.name
    clients = None if isinstance(partition, ColumnPartition | GroupsPartition) else partition.num_clients
    why = f"algorithm.name = {name} sums over clients, and of a sum over two each knows the other's part"
    if clients is not None and clients < FEWEST:
        yield f"partition.num_clients = {clients}: {why}; set {FEWEST} or more"
    elif cohort.size is not None and cohort.size < FEWEST:
        yield f"cohort.size = {cohort.size}: {why}; set {FEWEST} or more"


def idle_in_distillation(config: RunConfig, add: Callable[[str, str, str], None]) -> None:
    """Adds keys without effect."""
    algorithm = config.algorithm
    if config.public is not None and config.public.held_out:
        add("public", "classes", "where public rows are taken from the clients' own file")
    if not isinstance(algorithm, MdhflConfig):
        return
    if algorithm.variant == "upstream":
        add("algorithm", "ccr fresh_adam last targets", "with variant: upstream, which fixes it")
    if algorithm.ccr == "none" and algorithm.variant == "sound":
        add("algorithm", "eta loss_fraction", "with ccr: none")
    if algorithm.refinement is not None and algorithm.ccr == "none":
        add("algorithm", "sce", "with refinement and ccr: none")
