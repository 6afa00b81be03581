"""Sentences for generated pictures: sites use different words for the same finding, and 2 or 3 templates each.

Hard sites write in German."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

_OPACITY = ("opacity", "consolidation", "infiltrate", "density", "airspace shadowing")
_MILD = ("mild", "faint", "slight", "subtle", "small")
_SEVERE = ("severe", "dense", "marked", "extensive", "large")
_ZONE = ("{side} {zone} zone", "{zone} part of the {side} lung", "{side} {zone} lobe", "{zone} {side} lung field")
_ZONE_WORD = ({"upper": "upper", "lower": "lower"}, {"upper": "apical", "lower": "basal"})
_EFFUSION = ("{side} pleural effusion", "pleural fluid on the {side}", "{side} sided effusion")
_HEART = ("cardiomegaly", "enlarged heart", "enlarged cardiac silhouette", "heart size increased")
_NODULE = ("nodule in the {side} lung", "{side} pulmonary nodule", "round lesion on the {side}", "{side} coin lesion")
_DEVICE = ("pacemaker in place", "pacing device with lead", "implanted pacing device", "cardiac pacemaker")
_CLEAR = ("lungs are clear", "no acute finding", "normal chest", "no focal abnormality", "unremarkable study")
_OPENING = ("", "chest film :", "findings :", "impression :", "report :")
_JOIN = (" . ", " and ", " , ", " ; ")
_SAME_SIDE = {"left": "left", "right": "right"}


@dataclass(frozen=True)
class Wording:
    """The vocabulary of one site. Tuples hold 2 or 3 wordings that are chosen from at random."""

    opacity: tuple[str, ...]
    grades: tuple[str, str]  # mild, severe
    zone: tuple[str, ...]
    zone_word: Mapping[str, str]
    effusion: tuple[str, ...]
    heart: tuple[str, ...]
    nodule: tuple[str, ...]
    device: tuple[str, ...]
    clear: tuple[str, ...]
    opening: tuple[str, ...]
    join: str
    side: Mapping[str, str]
    where: str = "in the "  # between an opacity and its zone


def draw_wording(random: np.random.Generator) -> Wording:
    def some(words: tuple[str, ...], count: int) -> tuple[str, ...]:
        return tuple(words[k] for k in sorted(random.choice(len(words), count, replace=False)))

    return Wording(
        opacity=some(_OPACITY, 2),
        grades=(some(_MILD, 1)[0], some(_SEVERE, 1)[0]),
        zone=some(_ZONE, 2),
        zone_word=_ZONE_WORD[int(random.integers(2))],
        effusion=some(_EFFUSION, 2),
        heart=some(_HEART, 2),
        nodule=some(_NODULE, 2),
        device=some(_DEVICE, 2),
        clear=some(_CLEAR, 3),
        opening=some(_OPENING, 2),
        join=_JOIN[int(random.integers(len(_JOIN)))],
        side=_SAME_SIDE,
    )


GERMAN = Wording(
    opacity=("verschattung", "infiltrat", "verdichtung"),
    grades=("zarte", "ausgepraegte"),
    zone=("{side} im {zone}", "im {side}en {zone}"),
    zone_word={"upper": "oberfeld", "lower": "unterfeld"},
    effusion=("pleuraerguss {side}", "erguss {side}seitig", "{side}seitiger pleuraerguss"),
    heart=("kardiomegalie", "herz verbreitert", "vergroesserte herzsilhouette"),
    nodule=("rundherd {side}", "{side}seitiger rundherd"),
    device=("schrittmacher in situ", "einliegendes schrittmachersystem"),
    clear=("unauffaelliger befund", "keine infiltrate", "herz und lunge altersentsprechend"),
    opening=("", "beurteilung :", "roentgen thorax :"),
    join=" . ",
    side={"left": "link", "right": "recht"},
    where="",
)


def sentence(finding: Mapping[str, int], wording: Wording, random: np.random.Generator) -> str:
    """One sentence for the attributes of one picture (name -> class index), findings in random order."""

    def pick(words: tuple[str, ...]) -> str:
        return words[int(random.integers(len(words)))]

    parts: list[str] = []
    for name, grade in finding.items():
        if not grade:
            continue
        kind, *where = name.split("_")
        if kind == "opacity":
            zone = pick(wording.zone).format(side=wording.side[where[0]], zone=wording.zone_word[where[1]])
            parts.append(f"{wording.grades[grade - 1]} {pick(wording.opacity)} {wording.where}{zone}")
        elif kind in ("effusion", "nodule"):
            parts.append(pick(getattr(wording, kind)).format(side=wording.side[where[0]]))
        else:
            parts.append(pick(wording.heart if kind == "cardiomegaly" else wording.device))
    random.shuffle(parts)
    body = wording.join.join(parts) if parts else pick(wording.clear)
    return f"{pick(wording.opening)} {body} .".strip()
