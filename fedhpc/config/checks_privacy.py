"""Differential privacy against the rest of a config: what no clip bounds and no noise covers is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fedhpc.config.algorithms import POOLED, LocalConfig
from fedhpc.config.checks_robust import known_clients
from fedhpc.config.checks_updates import UPDATES_ONLY
from fedhpc.config.objectives import CrossEntropyConfig
from fedhpc.config.privacy import (
    NUM_COUNT_SHARES,
    ClientPrivacyConfig,
    RecordPrivacyConfig,
    delta_problem,
    split_noise,
)
from fedhpc.config.schema import ClassifierConfig, DualEncoderConfig, RunConfig

# What leaves a client is one update a round, of all blocks; with weight 1, which `_client_level` sees to.
CLIENT_LEVEL = UPDATES_ONLY
# What leaves a client is a function of the weights that its steps led to, and of nothing else in its rows.
RECORD_LEVEL = ("fedavg", "fedprox", "fedopt", "scaffold", "centralised", "local")
SHOWN_LOSSES = "which shows every client's loss: no clip bounds it, and it would need noise of its own"
ON_OUTPUTS = "which shares sums of class probabilities or features, whose norms no clip bounds yet"
OVER_BLOCKS = "whose clients own different blocks and share losses, which no clip bounds"
WHY_NOT = {
    "scaffold": "whose control variates leave clients too: an update and a variate share one clip badly, and what that "
    "does to convergence is not known here",
    "qffl": "whose weights and damping are functions of clients' losses, which no clip bounds",
    "afl": SHOWN_LOSSES,
    "feddra": SHOWN_LOSSES,
    "mdhfl": ON_OUTPUTS,
    "rhfl": ON_OUTPUTS,
    "fedmd": ON_OUTPUTS,
    "feddf": ON_OUTPUTS,
    "fedproto": ON_OUTPUTS,
    "dgb_pcw": OVER_BLOCKS,
    "hgb": OVER_BLOCKS,
    "gblend": "where one client holds all rows and shares losses",
    "fedmvp": "which sums Gram matrices to weigh clients by (CKA), whose norms no clip bounds",
    "moon": "whose objective is not the loss of one row under one model",
    "centralised": "where one client holds all rows: there is no other to hide it among",
    "creamfl": "which shares sums of representations, whose weights of exponentiated scores no clip bounds",
    "local": "which exchanges no weights",
}


def check_privacy(config: RunConfig) -> Iterator[str]:
    """Problems, one line each."""
    privacy = config.privacy
    if isinstance(privacy, ClientPrivacyConfig):
        yield from _client_level(config, privacy)
    elif isinstance(privacy, RecordPrivacyConfig):
        yield from _record_level(config)
    if privacy is None:
        return
    if config.sharding is not None:
        yield (
            f"privacy.unit = {privacy.unit} with sharded clients: norms and noise are made for whole models, not for "
            "slices of them; set mesh.shard: 1 and sharding: null, or remove privacy"
        )


def _client_level(config: RunConfig, privacy: ClientPrivacyConfig) -> Iterator[str]:
    name = config.algorithm.name
    if name not in CLIENT_LEVEL:
        yield _refused("client", name, CLIENT_LEVEL)
    elif getattr(config.algorithm, "weight", "uniform") != "uniform":
        yield (
            f"privacy.unit = client with algorithm.weight = {config.algorithm.weight}: a client's weight would tell of "  # type: ignore[union-attr]
            "its rows, and an update times a weight has no bounded norm; set algorithm.weight: uniform"
        )
    if not isinstance(config.model, ClassifierConfig | DualEncoderConfig):
        yield (
            f"privacy.unit = client with model.kind = {config.model.kind}, where clients own different blocks, or rows "
            "are completed before training: no clip bounds that; set model.kind: classifier or dual_encoder"
        )
    if config.aggregation.arithmetic == "float32":
        yield (
            "privacy.unit = client with aggregation.arithmetic = float32: noise is added to exact sums only; set "
            "arithmetic: fixed_point"
        )
    for key in ("robust", "compression"):
        if getattr(config.aggregation, key) is not None:
            yield (
                f"privacy.unit = client with aggregation.{key}, which reads updates one by one: the noise of one "
                f"client's share covers no single update; set aggregation.{key}: null, or privacy.unit: record"
            )
    clients, cohort = known_clients(config), config.cohort
    size = _cohort_size(config, clients)
    if (
        privacy.delta is not None
        and clients is not None
        and (wrong := delta_problem(privacy.delta, clients, "clients"))
    ):
        yield wrong
    if privacy.noise_shares is None and cohort.dropout is not None:
        yield (
            "cohort.dropout without privacy.noise_shares: the noise would be short of the shares of lost clients; set "
            "noise_shares to the number of clients that are left in every round"
        )
    if privacy.noise_shares is not None and size is not None and privacy.noise_shares > size:
        yield (
            f"privacy.noise_shares = {privacy.noise_shares} but {size} clients take part in a round; set noise_shares: "
            f"{size} or less"
        )
    if privacy.adaptive is not None and (privacy.adaptive.count_noise is not None or size is not None):
        try:
            split_noise(privacy.noise_multiplier, privacy.adaptive.count_noise or (size or 1) / NUM_COUNT_SHARES)
        except ValueError as error:
            yield str(error)
    if privacy.amplification:
        yield from _amplification(config, privacy, clients, size)


def _amplification(
    config: RunConfig, privacy: ClientPrivacyConfig, clients: int | None, size: int | None
) -> Iterator[str]:
    if privacy.secret_file is None:
        yield (
            "privacy.amplification = true without secret_file: cohorts drawn from random_seed are known to whoever "
            "reads config.yaml; set privacy.secret_file, or amplification: false"
        )
    if privacy.accountant == "pld":
        yield (
            "privacy.amplification = true with accountant = pld, which knows no cohorts of a fixed size; set "
            "accountant: rdp"
        )
    everyone = config.cohort.size is None and config.cohort.fraction is None
    if everyone or (clients is not None and size == clients):
        yield (
            "privacy.amplification = true where all clients take part in every round: there is nothing to amplify; set "
            "cohort.size, or amplification: false"
        )


def _record_level(config: RunConfig) -> Iterator[str]:
    name, fit = config.algorithm.name, config.fit
    if name not in RECORD_LEVEL:
        yield _refused("record", name, RECORD_LEVEL)
    if not isinstance(config.model, ClassifierConfig):
        contrast = "" if isinstance(config.objective, CrossEntropyConfig) else (
            " A contrastive loss compares the rows of a batch with each other, so no row has a gradient of its own."
        )  # fmt: skip
        yield (
            f"privacy.unit = record with model.kind = {config.model.kind}: it needs a loss that is a mean over rows, "
            f"each a function of its own row alone.{contrast} Set model.kind: classifier, or privacy.unit: client"
        )
    for key, off in (("clip_norm", None), ("accumulate", 1), ("precision", "float32"), ("compile", False)):
        value = getattr(fit, key)
        if value != off:
            yield (
                f"fit.{key} = {str(value).lower()} with privacy.unit = record, which takes the gradient of each row "
                f"and clips that (privacy.clip); set fit.{key}: {str(off).lower()}, or remove it"
            )


def idle_in_privacy(config: RunConfig, add: Callable[[str, str, str], None]) -> None:
    """Adds keys without effect."""
    if isinstance(config.privacy, RecordPrivacyConfig):
        add("fit", "drop_last", "with privacy.unit: record, whose batches are drawn at random and vary in size")


def _refused(unit: str, name: str, allowed: tuple[str, ...]) -> str:
    return (
        f"privacy.unit = {unit} with algorithm.name = {name}, {WHY_NOT[name]}; set algorithm.name: "
        f"{', '.join(allowed[:-1])} or {allowed[-1]}, or remove privacy"
    )


def _cohort_size(config: RunConfig, clients: int | None) -> int | None:
    """Clients a round, where the config alone tells."""
    cohort = config.cohort
    if cohort.size is not None or isinstance(config.algorithm, (LocalConfig, *POOLED)):
        return cohort.size
    if clients is None or cohort.fraction is None:
        return clients
    return max(1, round(cohort.fraction * clients))
