"""The key that a run's noise is drawn from.

It is made of a secret (a file), or else of random_seed, and of everything that the result depends on: config and data.
Two runs with one secret and different configs so have unrelated noise; with the same noise, the difference of their
sums would show what the noise is to hide.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from fedhpc.comm.keys import derive
from fedhpc.comm.noise import NoiseSource
from fedhpc.config.schema import RunConfig

LEAST_DIGITS = 32  # hexadecimal: 128 bits
# Sections, and keys of sections, that the bits of a sum do not depend on.
APART = {
    "": {"name", "checkpoint", "report", "evaluation"},
    "aggregation": {"secure", "min_contributors", "bucket_mib"},
    "data": {"path", "sidecar_dir"},
    "privacy": {"secret_file", "epsilon", "delta", "accountant"},
    "runtime": {"timeout_s", "time_margin_s"},
}


def noise_source(config: RunConfig, data_checksum: str, version: str) -> NoiseSource:
    """Of a run.

    Args:
        data_checksum: of the packed file.
        version: of fedhpc: another one may train to other bits.

    Raises:
        ValueError: the file of the secret cannot be read, or holds too little.
    """
    assert config.privacy is not None, "only runs with a privacy section draw noise"
    path = config.privacy.secret_file
    secret = f"random_seed {config.random_seed}".encode() if path is None else read_secret(path)
    about: dict[str, Any] = {
        section: _without(value, APART.get(section, set()))
        for section, value in _without(config.model_dump(mode="json"), APART[""]).items()
    }
    text = json.dumps([about, data_checksum, version], sort_keys=True)
    return NoiseSource(derive(secret, f"fedhpc noise {text}".encode()))


def _without(value: Any, keys: set[str]) -> Any:
    return {k: v for k, v in value.items() if k not in keys} if isinstance(value, dict) else value


def read_secret(path: Path) -> bytes:
    """Raises ValueError when it is no secret."""
    try:
        text = "".join(path.expanduser().read_text().split())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"privacy.secret_file = {path} cannot be read: {error}") from error
    if not re.fullmatch(r"[0-9A-Fa-f]*", text) or len(text) < LEAST_DIGITS or len(text) % 2:
        raise ValueError(
            f"privacy.secret_file = {path} holds no {LEAST_DIGITS} or more hexadecimal digits; make it with "
            f"`openssl rand -hex 32 > {path}`"
        )
    return bytes.fromhex(text)
