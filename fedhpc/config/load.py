"""YAML file + overrides -> RunConfig, with every problem in one message.

``extends: other.yaml`` at the top of a file merges that file under this one (path relative to the file). Sections
merge, lists replace. A section that names another variant than its base (``algorithm: {name: fedopt}`` over fedprox)
replaces the base's section. An override ``a.b=value`` sets one key; with a ``{...}`` value it replaces a whole section.
``~a.b`` takes a key out, so that its default holds, as in Hydra.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ValidationError

from fedhpc.config.checks import check, idle_keys
from fedhpc.config.draft import draft
from fedhpc.config.fields import closest, section_of, shown, value_at
from fedhpc.config.problems import Problem, Switch, problem
from fedhpc.config.schema import RunConfig
from fedhpc.config.section import Section
from fedhpc.config.yaml_text import MOST_BYTES, YamlError, parse, render

Kind = TypeVar("Kind", bound=Section)


class ConfigError(ValueError):
    """A config that cannot be run. `problems` has one line for each thing to put right.

    config: as it would be without them, for further checks (None: there is no telling).
    is_draft: nothing can stand in for a wrong key, so `config` is a draft.
    """

    def __init__(
        self, source: str, problems: Iterable[str], config: RunConfig | None = None, is_draft: bool = False
    ) -> None:
        self.source = source
        self.config = config
        self.is_draft = is_draft
        self.problems = tuple(dict.fromkeys(problems))
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__("\n  ".join([f"{source}: {count}", *self.problems]))


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The validated config of `path` with `overrides` (``dotted.key=YAML value``) applied in order.

    Checks everything that the config alone can tell, not whether files exist (`check_files`) nor the number of ranks
    (`check`). Raises ConfigError with all problems at once.
    """
    data = _read(Path(path), ())
    before = copy.deepcopy(data)
    problems, keys = _override(data, overrides)
    config, found, is_draft = _validate(data, _switches(before, data, keys), RunConfig, _check_run)
    problems += found
    if problems:
        raise ConfigError(str(path), problems, config, is_draft)
    return config


def read_validated(
    path: Path,
    overrides: Sequence[str],
    choose: Callable[[dict[str, Any]], tuple[type[Kind], list[str]]],
    check_: Callable[[Kind, bool], list[str]],
) -> Kind:
    """A YAML file with `overrides`, validated as the kind of section that `choose` finds in it, by the same rules.

    choose(data): the section, and problems that it saw; it may put `data` right for the moment.
    check_(section, is_draft): problems between keys; of a draft, those that the keys it has can tell.
    Raises ConfigError with all problems at once.
    """
    data = _read(Path(path), ())
    problems, _ = _override(data, overrides)
    root, seen = choose(data)
    section, found, _ = _validate(data, {}, root, check_)
    problems += [*seen, *found]
    if problems:
        raise ConfigError(str(path), problems)
    return section


def dump_config(config: RunConfig) -> str:
    """Resolved YAML with every key that has an effect; `load_config` reads it back to an equal config."""
    data = config.model_dump(mode="json")
    for dotted in idle_keys(config):
        *parents, key = dotted.split(".")
        value_at(data, parents).pop(key)
    return render(data)


def config_digest(config: RunConfig) -> str:
    """SHA-256 over all values, 64 hex digits: the same for the same config, however it was written."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


# -------------------------------------------------------------------------------------------------------- reading
def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The mapping in a file, merged over what it extends."""
    try:
        here = path.resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(str(path), [f"cannot be read: {error}; give the path of a YAML file"]) from error
    if here in seen:
        chain = " -> ".join(file.name for file in (*seen, here))
        raise ConfigError(str(path), [f"extends: goes round in a circle ({chain}); remove one of the extends lines"])
    try:
        data = parse(_text(path))
    except FileNotFoundError as error:
        near = closest(path.name, (file.name for file in path.parent.glob("*.y*ml")))
        hint = f"; did you mean {path.parent / near}?" if near else "; give the path of a YAML file"
        raise ConfigError(str(path), [f"no such file{hint}"]) from error
    except YamlError as error:
        raise ConfigError(str(path), error.problems) from error
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or no path at all
        raise ConfigError(str(path), [f"cannot be read: {error}; give the path of a YAML file"]) from error
    if not isinstance(data, dict):
        what = "is empty" if data is None else f"holds {shown(data)}"
        raise ConfigError(str(path), [f"the file {what}; it must be a mapping of sections (name, rounds, data, ...)"])
    if "extends" not in data:
        return data
    base = data.pop("extends")
    if not isinstance(base, str):
        raise ConfigError(str(path), [f"extends = {shown(base)}: not a path; set it to one YAML file"])
    return _merge(_read(path.parent / base, (*seen, here)), data, RunConfig)


def _text(path: Path) -> str:
    """Of a regular file of sensible size: a device has no end."""
    if path.exists() and not path.is_file():
        raise OSError("it is no regular file")
    if path.exists() and path.stat().st_size > MOST_BYTES:
        raise OSError(f"it has {path.stat().st_size} bytes, a config {MOST_BYTES} at most")
    return path.read_text(encoding="utf-8")


def _merge(base: dict[str, Any], over: Mapping[str, Any], section: type[Section] | None) -> dict[str, Any]:
    """`over` on top of `base`. Sections merge unless they name another variant; all else replaces."""
    merged = dict(base)
    for key, value in over.items():
        field = section.model_fields.get(key) if section else None
        old = base.get(key)
        tag = field.discriminator if field else None
        merged[key] = value
        if isinstance(value, dict) and isinstance(old, dict):
            other_variant = isinstance(tag, str) and tag in value and value[tag] != old.get(tag)
            if not other_variant:
                merged[key] = _merge(old, value, section_of(field) if field else None)
    return merged


# ------------------------------------------------------------------------------------------------------ overrides
def _override(data: dict[str, Any], overrides: Sequence[str]) -> tuple[list[str], set[tuple[str, ...]]]:
    """Applies overrides to `data` in place. Returns problems and the paths that were set."""
    problems: list[str] = []
    done: set[tuple[str, ...]] = set()
    for text in overrides:
        if text.startswith("~"):
            problems += _unset(data, text)
            continue
        dotted, equals, raw = text.partition("=")
        path = tuple(part.strip() for part in dotted.split("."))
        if not equals or not all(path):
            problems.append(f"override {shown(text)}: not of the form section.key=value; write rounds=3, for example")
            continue
        if path[0] == "extends":
            problems.append(f"override {shown(text)}: extends works in files only; give the other file instead")
            continue
        try:
            value = parse(raw)
        except YamlError as error:
            problems += [f"override {shown(text)}: {line}" for line in error.problems]
            continue
        holder: dict[str, Any] = data
        for depth, part in enumerate(path[:-1], start=1):
            if holder.get(part) is None:
                holder[part] = {}
            if not isinstance(holder[part], dict):
                name, kind = ".".join(path[:depth]), "a list" if isinstance(holder[part], list) else "a single value"
                problems.append(f"override {shown(text)}: {name} is {kind}; replace it as a whole: {name}=...")
                break
            holder = holder[part]
        else:
            holder[path[-1]] = value
            done.add(path)
    return problems, done


def _unset(data: dict[str, Any], text: str) -> list[str]:
    """Takes the key of an override ``~section.key`` out of `data`. Returns problems."""
    line = f"override {shown(text)}: "
    path = tuple(part.strip() for part in text[1:].split("."))
    if "=" in text or not all(path):
        return [f"{line}not of the form ~section.key; ~ takes a key out and gives it no value"]
    holder = value_at(data, path[:-1])
    if not isinstance(holder, dict) or path[-1] not in holder:
        dotted = ".".join(path)
        near = closest(path[-1], holder) if isinstance(holder, dict) else None
        hint = f"did you mean ~{'.'.join((*path[:-1], near))}? Otherwise leave" if near else "leave"
        return [f"{line}{dotted} is not set, so its default holds already; {hint} the override out"]
    holder.pop(path[-1])
    return []


def _switches(before: Mapping[str, Any], after: Mapping[str, Any], keys: set[tuple[str, ...]]) -> dict[str, Switch]:
    """Sections whose variant was changed by a dotted override, so that old keys are left in them."""
    switches = {}
    for name, field in RunConfig.model_fields.items():
        key = field.discriminator
        if not isinstance(key, str) or (name, key) not in keys:
            continue
        old, new = value_at(before, (name, key)), value_at(after, (name, key))
        if old is not None and old != new:
            set_too = frozenset(path[1] for path in keys if path[0] == name and len(path) > 1)
            switches[name] = Switch(key, str(old), str(new), set_too)
    return switches


# ----------------------------------------------------------------------------------------------------- validation
def _check_run(config: RunConfig, is_draft: bool) -> list[str]:
    return check(config, is_draft=is_draft)


def _validate(
    data: dict[str, Any], switches: Mapping[str, Switch], root: type[Kind], check_: Callable[[Kind, bool], list[str]]
) -> tuple[Kind, list[str], bool]:
    """The config, every problem, and whether the config is but a draft. Behind each problem that can be mended for the
    moment, looks for further ones; behind the others, for what the remaining keys tell of each other."""
    lines: list[str] = []
    mended: list[str] = []

    def new(found: Iterable[str]) -> list[str]:
        """Leaves out what was said already, and complaints about our own guess at a key that was wrong."""
        guess = re.compile("|".join(rf"\b{re.escape(key)}\b" for key in mended) or "(?!)")
        return [line for line in found if line not in lines and not guess.search(line)]

    while True:
        try:
            config = root.model_validate(data)
        except ValidationError as error:
            found = [problem(detail, root, data, switches) for detail in error.errors(include_url=False)]
            lines += new(one.line for one in found)
            data, keys = _mend(data, found)
            if not keys:
                drafted = cast(Kind, draft(root, data))
                lines += new(check_(drafted, True))
                return drafted, lines, True
            mended += keys
        else:
            lines += new(check_(config, False))
            return config, lines, False


def _mend(data: dict[str, Any], found: Sequence[Problem]) -> tuple[dict[str, Any], list[str]]:
    """A copy without the keys that cannot stay, or with the spelling that was probably meant, and the keys touched."""
    data = copy.deepcopy(data)
    touched = []
    for one in found:
        holder = value_at(data, one.path[:-1])
        if not one.drop or not isinstance(holder, dict) or one.path[-1] not in holder:
            continue
        value = holder.pop(one.path[-1])
        touched.append(one.path[-1])
        if one.rename is not None:
            holder[one.rename] = value
    return data, touched
