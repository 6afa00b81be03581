"""Damage: random changes to bytes, to text and to trees of plain values. All randomness comes from the caller."""

from __future__ import annotations

import copy
import random
from typing import Any

NUMBERS = [
    0,
    1,
    2,
    7,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    2**62,
    2**63 - 1,
    2**64 - 1,
]
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 7, 2**31, 2**63, 10**30, -(10**12), 0.5, 1e308, float("nan"), float("inf"), "", "x",
    "0", "null", "../..", "/", "\x00", "é" * 50, "a" * 5000, [], {}, [1, 2], {"a": 1}, [[[]]], {"": None}, ["x"] * 300,
]  # fmt: skip
TOKENS = [
    "{", "}", "[", "]", ":", ": ", "- ", "\n", "\t", "&a ", "*a", "!!python/object:os.system ", "!!binary ", "<<: ",
    "|", ">", "#", "'", '"', "---\n", "...\n", "%YAML 9.9\n", "~", "null", "true", "1e3", "1e999", "0o9", "0x", ".nan",
    "-.inf", "1:2:3", "2026-11-21", "\ufeff", "\x00", "\x85", "\u2028", "é", "9" * 5000, "extends: ", "name: x\n",
    "? ", "@", "`", "\\", "rounds: -1\n", "!!int 'x'", "!!float ''", "!!timestamp 'x'", "[" * 2000, "{a: " * 500,
]  # fmt: skip


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to eight changes."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 8])):
        place = rng.randrange(len(out)) if out else 0
        kind = rng.randrange(7)
        if not out or kind == 0:
            out[place:place] = rng.randbytes(rng.choice([1, 4, 64]))
        elif kind == 1:
            out[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            out[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif kind == 3:  # a number of the file: lengths, offsets, counts
            width = rng.choice([1, 2, 4, 8])
            number = rng.choice(NUMBERS) % (1 << 8 * width)
            out[place : place + width] = number.to_bytes(width, "little")
        elif kind == 4:
            del out[place : place + rng.choice([1, 8, 100, 2000])]
        elif kind == 5:
            length = rng.choice([8, 64, 1000])
            source = rng.randrange(len(out))
            out[place : place + length] = out[source : source + length]
        else:
            del out[place:]
    return bytes(out)


def damaged_text(text: str, rng: random.Random) -> str:
    """One to five changes to characters, words and lines."""
    for _ in range(rng.choice([1, 1, 2, 3, 5])):
        lines = text.split("\n")
        line = rng.randrange(len(lines))
        place = rng.randrange(len(text) + 1)
        kind = rng.randrange(6)
        if kind == 0:
            text = text[:place] + rng.choice(TOKENS) + text[place:]
        elif kind == 1:
            text = text[:place] + text[place + rng.choice([1, 3, 20]) :]
        elif kind == 2:
            lines.insert(rng.randrange(len(lines) + 1), lines[line])
            text = "\n".join(lines)
        elif kind == 3:
            lines[line] = " " * rng.randrange(9) + lines[line].lstrip()
            text = "\n".join(lines)
        elif kind == 4:
            key, colon, _ = lines[line].partition(":")
            lines[line] = f"{key}{colon} {rng.choice(TOKENS)}"
            text = "\n".join(lines)
        else:
            words = text.split(" ")
            first, second = rng.randrange(len(words)), rng.randrange(len(words))
            words[first], words[second] = words[second], words[first]
            text = " ".join(words)
    return text


def damaged_tree(tree: Any, rng: random.Random) -> Any:
    """A copy in which one to four values are replaced, taken out, or put somewhere else."""
    tree = {"": copy.deepcopy(tree)}
    for _ in range(rng.choice([1, 1, 2, 4])):
        places = list(_places(tree))
        holder, key = rng.choice(places)
        kind = rng.randrange(6)
        if kind == 0 and key != "":
            del holder[key]
        elif kind == 1:
            other, place = rng.choice(places)
            holder[key] = copy.deepcopy(other[place])
        elif kind == 2 and isinstance(holder, dict) and key != "":
            holder[rng.choice(["", "x", "#map", "#tensor", "#block", "name", str(rng.choice(NUMBERS))])] = holder.pop(
                key
            )
        elif kind == 3 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
            holder[key] = rng.choice([-1, 0, 1, holder[key] + 1, -holder[key], rng.choice(NUMBERS)])
        elif kind == 4:
            holder[key] = [holder[key]] * rng.choice([1, 2, 50])
        else:
            holder[key] = copy.deepcopy(rng.choice(VALUES))
    return tree[""]


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """(holder, key) of every value below."""
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting and len(found) < 20_000:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            found.append((holder, key))
            if isinstance(holder[key], (dict, list)):
                waiting.append(holder[key])
    return found
