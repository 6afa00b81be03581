"""Whether timm and transformers know an encoder's name, read off their source files: importing them takes seconds.

Imports neither them nor torch. A test compares what is found with what the libraries themselves list.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from fedhpc.config.blocks import OWN_NETWORKS, encoders
from fedhpc.config.fields import closest
from fedhpc.config.schema import ClassifierConfig, EncoderConfig, RunConfig

_REGISTERED = re.compile(r"^@register_model\s*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
_RENAMED = re.compile(r"register_model_deprecations\(__name__, \{(.*?)\}\)", re.DOTALL)
_KEY = re.compile(r"""['"](\w+)['"] *:""")
_TYPE = re.compile(r"""['"]([\w.-]+)['"](?:,|:)\s*['"](?!AutoConfig)\w+Config['"]""")


def timm_names() -> frozenset[str]:
    """Networks of the timm that is installed, by the functions that it registers; empty where it is not found."""
    names: set[str] = set()
    for path in _folder("timm", "models").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        names.update(_REGISTERED.findall(text))
        for renamed in _RENAMED.findall(text):
            names.update(_KEY.findall(renamed))
    return frozenset(names)


def transformers_names() -> frozenset[str]:
    """Model types of the transformers that is installed; empty where they are not found."""
    files = _folder("transformers", "models", "auto").glob("*_*.py")
    chosen = [path for path in files if path.name in ("auto_mappings.py", "configuration_auto.py")]
    return frozenset(name for path in chosen for name in _TYPE.findall(path.read_text(encoding="utf-8")))


def check_names(config: RunConfig) -> list[str]:
    """A line for each encoder whose name its library does not know."""
    found: list[str] = []
    own = OWN_NETWORKS if isinstance(config.model, ClassifierConfig) else ()  # other models take timm's alone
    for key, encoder in encoders(config.model).items():
        if key == "text":
            found += _unknown(key, encoder, "transformers has no model type", transformers_names)
        else:
            found += _unknown(key, encoder, "timm has no network", timm_names, own)
    return found


def _unknown(
    key: str, encoder: EncoderConfig, what: str, names: Callable[[], frozenset[str]], own: Sequence[str] = ()
) -> Iterator[str]:
    name = encoder.name if key == "text" else encoder.name.partition(".")[0]
    if encoder.name in own or _is_location(encoder.name):
        return
    known = names()
    if known and name not in known:
        meant = closest(name, known)
        hint = (
            f"; did you mean {meant}?" if meant else ", such as bert" if key == "text" else "; see timm.list_models()"
        )
        yield f"model.{key}.name = {encoder.name}: {what} {name}{hint}"


def _is_location(name: str) -> bool:
    """A folder or hub id rather than a name."""
    return name.startswith((".", "/", "~")) or "/" in name or Path(name).is_dir()


def _folder(library: str, *below: str) -> Path:
    spec = find_spec(library)
    places = spec.submodule_search_locations if spec is not None else None
    return Path(places[0], *below) if places else Path("/nonexistent")
