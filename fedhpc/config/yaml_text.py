"""YAML that does not guess: duplicate keys are refused, `1e-3` is a number and dates stay text."""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

_FLOAT_TAG = "tag:yaml.org,2002:float"
_TIMESTAMP_TAG = "tag:yaml.org,2002:timestamp"
# No config comes near these. Aliases of aliases stand for exponentially many values in a few lines.
MOST_BYTES = 1 << 20
MOST_VALUES = 100_000
MOST_DEPTH = 50
# YAML 1.1, and so PyYAML, wants a dot and a sign in the exponent: without this, 1e-3 would be text.
_EXPONENT = re.compile(r"^[-+]?(?:[0-9]+|[0-9]*\.[0-9]+|[0-9]+\.[0-9]*)[eE][-+]?[0-9]+$")


class YamlError(ValueError):
    """`problems` lists what is wrong with the text, each with its line."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class _Loader(yaml.SafeLoader):
    """Safe: builds plain values only. Collects duplicate keys instead of keeping the last one."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.problems: list[str] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        first_lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key, line = self.construct_object(key_node), key_node.start_mark.line + 1
            if not isinstance(key, str):
                why = "YAML reads yes, no, on and off as booleans" if isinstance(key, bool) else "keys are text"
                self.problems.append(f"line {line}: key {key_node.value} is not text; {why}: quote it")
            elif key in first_lines:
                self.problems.append(
                    f"line {line}: key {key} is given twice, first on line {first_lines[key]}; keep one of them"
                )
            first_lines.setdefault(key, line)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what _Loader would read as something else; writes no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


# add_implicit_resolver copies PyYAML's own table to the class first: other users of PyYAML see no change.
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(_FLOAT_TAG, _EXPONENT, list("-+.0123456789"))
_Loader.yaml_implicit_resolvers = {
    first: [entry for entry in entries if entry[0] != _TIMESTAMP_TAG]
    for first, entries in _Loader.yaml_implicit_resolvers.items()
}


def parse(text: str) -> Any:
    """The value of a YAML text (None for an empty one).

    Raises YamlError on a syntax error, on duplicate keys and on keys that are not text.
    """
    loader = None
    try:
        loader = _Loader(text)  # refuses unprintable characters at once
        node = loader.get_single_node()
        if node is not None:
            _measure(node)
        value = None if node is None else loader.construct_document(node)
    except RecursionError as error:
        raise YamlError([f"nested more than {MOST_DEPTH} levels deep; write it with fewer"]) from error
    except yaml.YAMLError as error:
        raise YamlError([_syntax(error)]) from error
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        # A value that YAML's own types stumble over, such as 0o9 or !!int ''.
        raise YamlError([f"cannot be read: {error}; quote the value"]) from error
    finally:
        if loader is not None:
            loader.dispose()
    if loader.problems:
        raise YamlError(loader.problems)
    return value


def _measure(root: yaml.Node) -> None:
    """Raises YamlError for more values than a config can have, aliases written out, and for ones within themselves."""
    known: dict[int, tuple[int, int]] = {}  # values within, levels within
    open_nodes: set[int] = set()

    def measure(node: yaml.Node) -> tuple[int, int]:
        line = f"line {node.start_mark.line + 1}: "
        if id(node) in open_nodes:
            raise YamlError([f"{line}an alias stands for something that it is part of; write out what is meant"])
        if id(node) not in known:
            open_nodes.add(id(node))
            if isinstance(node, yaml.MappingNode):
                parts = [part for pair in node.value for part in pair]
            else:
                parts = node.value if isinstance(node, yaml.SequenceNode) else []
            inner = [measure(part) for part in parts]
            known[id(node)] = 1 + sum(n for n, _ in inner), 1 + max((levels for _, levels in inner), default=0)
            open_nodes.discard(id(node))
        if known[id(node)][1] > MOST_DEPTH:
            raise YamlError([f"{line}nested more than {MOST_DEPTH} levels deep; write it with fewer"])
        return known[id(node)]

    if measure(root)[0] > MOST_VALUES:
        raise YamlError([f"more than {MOST_VALUES} values once aliases are written out; write fewer"])


def render(value: Any, flow: bool = False) -> str:
    """YAML text of plain values, in the order given; `parse` reads it back to the same. flow: all on one line."""
    text: str = yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=math.inf if flow else 120,
        default_flow_style=flow,
    )
    return text.removesuffix("...\n").rstrip("\n") if flow else text


def _syntax(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):
        return f"not YAML: {error}".replace("\n", " ")
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    what = ", ".join(part for part in (error.context, error.problem) if part)
    return f"{where}not YAML: {what}; check indentation, quotes and the space after each colon"
