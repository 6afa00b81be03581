"""What works on each client's own update - robust rules, attacks, compression - against the rest of a config."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from fedhpc.config.byzantine import LabelFlipAttack, least_clients
from fedhpc.config.checks_robust import known_clients
from fedhpc.config.schema import ColumnPartition, DualEncoderConfig, FusionConfig, JointConfig, RunConfig

UPDATES_ONLY = ("fedavg", "fedprox", "fedopt", "moon")
BESIDES: Mapping[str, str] = {
    "scaffold": "its control variates cross beside updates, and must add up to those that clients keep",
    "qffl": "what crosses is scaled by losses, and divided by what they add up to",
    "afl": "losses set its weights, and models on the way may cross beside updates",
    "feddra": "its losses set the weights, and parts of the model cross in two stages",
    "mdhfl": "its clients send predictions, no updates",
    "rhfl": "its clients send predictions, no updates",
    "fedmd": "its clients send predictions, no updates",
    "feddf": "its clients send predictions beside updates",
    "fedproto": "its clients send prototypes, no updates",
    "dgb_pcw": "its clients own different blocks",
    "hgb": "its clients own different blocks",
    "gblend": "its only client holds all rows",
    "centralised": "its only client holds all rows",
    "fedmvp": "its clients keep their updates until Gram matrices have set the weights",
    "creamfl": "its clients send representations beside one update of the server's model",
    "local": "nothing crosses",
}


def check_updates(config: RunConfig) -> Iterator[str]:
    """Problems, one line each."""
    aggregation = config.aggregation
    robust, compression, attack = aggregation.robust, aggregation.compression, config.attack
    set_keys = []
    if robust is not None:
        set_keys.append(f"aggregation.robust.rule = {robust.rule}")
    if compression is not None:
        set_keys.append(f"aggregation.compression.kind = {compression.kind}")
    if attack is not None and not isinstance(attack, LabelFlipAttack):
        set_keys.append(f"attack.kind = {attack.kind}")
    for told in set_keys:
        yield from _whole_updates(config, told)
    if robust is not None and compression is not None:
        yield (
            f"{set_keys[0]} with {set_keys[1]}: rules compare updates, and have not been made to compare rounded "
            "ones; set one of them to null"
        )
    if aggregation.secure and robust is not None:
        yield (
            f"aggregation.robust.rule = {robust.rule} with aggregation.secure = true: rules compare the clients' "
            "updates one by one (they reveal `update`), and masks hide all but their sum; set secure: false, or "
            "robust: null"
        )
    if aggregation.secure and compression is not None:
        yield (
            f"aggregation.compression.kind = {compression.kind} with aggregation.secure = true: rounded updates reach "
            "the ranks that add them up one by one (they reveal `update`), and masks hide all but their sum; set "
            "secure: false, or compression: null"
        )
    yield from _few_clients(config)
    yield from _attack(config)


def _whole_updates(config: RunConfig, told: str) -> Iterator[str]:
    name = config.algorithm.name
    key = told.split(" = ")[0].rpartition(".")[0]
    if name not in UPDATES_ONLY:
        yield (
            f"{told} with algorithm.name = {name}: it works where each client sends one whole update a round, and "
            f"here {BESIDES[name]}; set algorithm.name to one of {', '.join(UPDATES_ONLY)}, or {key}: null"
        )
    elif isinstance(config.model, FusionConfig):
        yield (
            f"{told} with model.kind = fusion, whose clients own different blocks: their updates cannot be laid side "
            f"by side; set {key}: null"
        )
    if config.sharding is not None:
        yield (
            f"{told} with sharded clients: no rank of a sharded client has its whole update; set {key}: null, or "
            "mesh.shard: 1 and sharding: null"
        )


def _few_clients(config: RunConfig) -> Iterator[str]:
    clients = known_clients(config)
    if clients is not None or config.cohort.size is not None:
        yield from too_few_clients(config, clients or 0)


def too_few_clients(config: RunConfig, clients: int) -> Iterator[str]:
    """A rule against the clients of a round. clients: those that train; of no matter where cohort.size is set."""
    size, fraction = config.cohort.size, config.cohort.fraction
    cohort, source = clients, "clients that train"
    if size is not None:
        cohort, source = size, "cohort.size"
    elif fraction is not None:
        cohort, source = max(1, round(fraction * clients)), f"cohort.fraction({fraction:g}) * {clients} clients"
    rule = config.aggregation.robust
    if rule is None:
        return
    least, arithmetic = least_clients(rule)
    if cohort >= least:
        return
    f = getattr(rule, "num_byzantine", 0)
    slack = 3 if rule.rule in ("krum", "multi_krum") else 1
    most = (cohort - slack) // 2
    kept = getattr(rule, "num_kept", None)
    if kept is not None and 2 * f + 3 <= cohort:
        cure = f"num_kept: {cohort - f} or less, or "
    else:
        cure = f"num_byzantine: {most}, or " if f and most >= 1 else ""
    yield (
        f"aggregation.robust.rule = {rule.rule} needs {arithmetic} clients a round or more, but {source} = {cohort}; "
        f"set {cure}{least} clients or more"
    )


def _attack(config: RunConfig) -> Iterator[str]:
    attack, clients = config.attack, known_clients(config)
    if attack is None:
        return
    if isinstance(attack, LabelFlipAttack):
        if isinstance(config.model, DualEncoderConfig):
            yield "attack.kind = label_flip with model.kind = dual_encoder, which learns no labels; set another kind"
        elif isinstance(config.model, (FusionConfig, JointConfig)):
            yield (
                f"attack.kind = label_flip is made for model.kind = classifier, and model.kind = {config.model.kind}; "
                "set another kind"
            )
        elif config.algorithm.name in ("centralised", "gblend"):
            yield f"attack with algorithm.name = {config.algorithm.name}: its only client holds all rows; remove attack"
    if attack.clients is None:
        return
    if len(set(attack.clients)) != len(attack.clients):
        yield f"attack.clients = {attack.clients} names a client twice; name each once"
    partition = config.partition
    if isinstance(partition, ColumnPartition) and partition.leave_out:
        clients = None  # those that train are not numbered without a gap
    unknown = [c for c in attack.clients if c < 0 or (clients is not None and c >= clients)]
    if unknown:
        most = f"0 to {clients - 1}" if clients is not None else "0 and more"
        yield f"attack.clients = {attack.clients}: there is no client {unknown[0]}; the run has {most}"
    elif clients is not None and len(set(attack.clients)) == clients:
        yield f"attack.clients = {attack.clients} names every client; leave an honest one"


def idle_beside_updates(config: RunConfig, add: Callable[[str, str, str], None]) -> None:
    """Adds keys without effect."""
    if config.aggregation.robust is not None:
        if hasattr(config.algorithm, "weight"):
            add("algorithm", "weight", "with aggregation.robust, where every client counts alike")
        add("aggregation", "bucket_mib", "with aggregation.robust, whose exchanges are not cut into buckets")
    elif config.aggregation.compression is not None:
        add("aggregation", "bucket_mib", "with aggregation.compression, whose exchanges are not cut into buckets")
