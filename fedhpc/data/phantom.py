"""Generated chest-like pictures: NOT real data. Torso, lungs, ribs, heart, diaphragm, and findings drawn into them.

Sides are the patient's: "left" is on the right of the picture, as in a radiograph. Coordinates run from 0 to 1 over the
picture, y downwards. Sites differ in scanner (contrast, gamma, noise, blur, vignette, field of view, brightness), in
how often a finding occurs, and in wording (see :mod:`fedhpc.data.phantom_words`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray

SEVERITY = ("none", "mild", "severe")
PRESENCE = ("none", "present")
FINDINGS = ("none", "opacity", "effusion", "cardiomegaly", "nodule", "device")
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    **{f"opacity_{side}_{zone}": SEVERITY for side in ("left", "right") for zone in ("upper", "lower")},
    "effusion_left": PRESENCE,
    "effusion_right": PRESENCE,
    "cardiomegaly": PRESENCE,
    "nodule_left": PRESENCE,
    "nodule_right": PRESENCE,
    "device": PRESENCE,
}
"""Label columns of the phantom, each with its classes; their order is that of the columns of `attributes` arrays."""
_INDEX = {name: place for place, name in enumerate(ATTRIBUTES)}
_GROUP = tuple(FINDINGS.index(name.split("_")[0]) for name in ATTRIBUTES)


@dataclass(frozen=True)
class Scanner:
    """The look of one site's pictures."""

    contrast: float
    gamma: float
    brightness: float
    noise: float  # standard deviation, of full scale 1
    blur: float  # standard deviation in pixels of a 64-pixel picture
    vignette: float
    field: float  # above 1: the chest looks smaller
    inverted: bool = False  # air is white, as in pictures stored as MONOCHROME1


def draw_scanner(random: np.random.Generator) -> Scanner:
    return Scanner(
        contrast=random.uniform(0.75, 1.2),
        gamma=random.uniform(0.7, 1.45),
        brightness=random.uniform(-0.06, 0.06),
        noise=random.uniform(0.01, 0.045),
        blur=random.uniform(0.0, 0.8),
        vignette=random.uniform(0.0, 0.35),
        field=random.uniform(0.92, 1.12),
    )


HARD_SCANNER = Scanner(
    contrast=0.75, gamma=1.3, brightness=0.0, noise=0.05, blur=0.5, vignette=0.3, field=1.1, inverted=True
)


def draw_attributes(prevalence: Array, n: int, random: np.random.Generator) -> Array:
    """int32 [n, 10] columns of ATTRIBUTES. prevalence [6]: how often each of FINDINGS comes first.

    A second finding joins in 40 % of pictures that have one, and never more: sentences stay short.
    """
    out = np.zeros((n, len(ATTRIBUTES)), np.int32)
    first = random.choice(len(FINDINGS), n, p=prevalence)
    joins = random.random(n) < 0.4
    others = prevalence[1:] / prevalence[1:].sum()
    second = np.where((first > 0) & joins, 1 + random.choice(len(FINDINGS) - 1, n, p=others), 0)
    for finding in (first, second):
        for group in range(1, len(FINDINGS)):
            rows = np.flatnonzero(finding == group)
            places = np.flatnonzero(np.asarray(_GROUP) == group)
            chosen = random.choice(places, len(rows))
            severity = random.integers(1, 3, len(rows)) if FINDINGS[group] == "opacity" else 1
            out[rows, chosen] = severity
    return out


def primary_finding(attributes: Array) -> Array:
    """int32 [n]: the first of FINDINGS (after none) that a picture shows, 0 where it shows nothing."""
    groups = np.where(attributes > 0, np.asarray(_GROUP), len(FINDINGS))
    lowest = groups.min(1)
    return np.where(lowest == len(FINDINGS), 0, lowest).astype(np.int32)


def draw_labs(attributes: Array, num_columns: int, random: np.random.Generator) -> Array:
    """float32 [n, num_columns]: laboratory values, linear in the findings with noise, each in units of its own.

    attributes [n, 10]. A value in fifty is missing (NaN), and one in two hundred an outlier.
    """
    findings = np.stack([(attributes * (np.asarray(_GROUP) == g)).sum(1) for g in range(1, len(FINDINGS))], axis=1)
    effect = random.standard_normal((findings.shape[1], num_columns))
    values = findings @ effect + 1.5 * random.standard_normal((len(attributes), num_columns))
    values[random.random(values.shape) < 0.005] *= 100
    values = values * 10 ** random.uniform(-1, 2, num_columns) + random.uniform(-5, 5, num_columns)
    values[random.random(values.shape) < 0.02] = np.nan
    return values.astype(np.float32)


def draw_anatomy(n: int, random: np.random.Generator) -> Array:
    """float32 [n, 8] per patient: shift x, y, tilt, torso width, lung width, lung height, heart size, rib phase."""
    low = np.array([-0.03, -0.03, -0.06, 0.93, 0.92, 0.94, 0.92, 0.0])
    high = np.array([0.03, 0.03, 0.06, 1.07, 1.08, 1.06, 1.08, 6.28])
    return random.uniform(low, high, (n, 8)).astype(np.float32)


def draw_pictures(attributes: Array, anatomy: Array, scanner: Scanner, size: int, random: np.random.Generator) -> Array:
    """uint8 [n, size, size, 1] pictures of n rows of attributes [n, 10] and anatomy [n, 8]."""
    canvas = _Canvas(attributes, anatomy, scanner, size, random)
    canvas.draw_body()
    canvas.draw_findings()
    return _scan(canvas.picture, scanner, size, random)


class _Canvas:
    """n pictures at once, float32 [n, size, size]; brightness is added where tissue absorbs."""

    def __init__(
        self, attributes: Array, anatomy: Array, scanner: Scanner, size: int, random: np.random.Generator
    ) -> None:
        self.random, self.attributes = random, attributes
        shift_x, shift_y, tilt, self.torso, self.lung_w, self.lung_h, self.heart, self.phase = (
            anatomy[:, k, None, None] for k in range(8)
        )
        grid = ((np.arange(size, dtype=np.float32) + 0.5) / size - 0.5) * np.float32(scanner.field)
        x, y = grid[None, None, :] - shift_x, grid[None, :, None] - shift_y
        self.x, self.y = x + tilt * y + 0.5, y - tilt * x + 0.5
        self.n = len(attributes)

    def _column(self, values: Array) -> Array:
        return np.asarray(values, np.float32)[:, None, None]

    def _ellipse(
        self, cx: Array | float, cy: Array | float, rx: Array | float, ry: Array | float, edge: float
    ) -> Array:
        """1 inside, 0 outside, with a soft edge (in radii)."""
        distance = np.sqrt(((self.x - cx) / rx) ** 2 + ((self.y - cy) / ry) ** 2)
        return _step((1.0 - distance) / edge)

    def _blob(self, cx: Array, cy: Array, radius: Array | float) -> Array:
        return np.exp(-0.5 * ((self.x - cx) ** 2 + (self.y - cy) ** 2) / radius**2)

    def _jitter(self, centre: float, spread: float) -> Array:
        return self._column(centre + self.random.uniform(-spread, spread, self.n))

    def draw_body(self) -> None:
        body = self._ellipse(0.5, 0.58, 0.44 * self.torso, 0.56, 0.08)
        right = self._ellipse(0.32, 0.46, 0.135 * self.lung_w, 0.27 * self.lung_h, 0.25)
        left = self._ellipse(0.68, 0.46, 0.125 * self.lung_w, 0.27 * self.lung_h, 0.25)
        dome = 0.68 + 0.35 * (np.abs(self.x - 0.5) - 0.18) ** 2 / 0.1  # the diaphragm bounds both lungs below
        above = _step((dome - self.y) / 0.02)
        self.right, self.left = right * above, left * above
        self.lungs = np.maximum(self.right, self.left)
        picture = 0.62 * body - 0.40 * self.lungs
        rib = np.sin(46.0 * (self.y + 0.35 * (np.abs(self.x - 0.5) - 0.2) ** 2 * 4) + self.phase)
        picture += 0.045 * rib * self.lungs
        picture += 0.10 * np.exp(-0.5 * ((self.x - 0.5) / 0.035) ** 2) * body  # spine
        big = self._column(1.0 + 0.62 * self.attributes[:, _INDEX["cardiomegaly"]])
        heart = self._ellipse(0.545, 0.585, 0.105 * self.heart * big, 0.125 * self.heart * (0.75 + 0.25 * big), 0.12)
        self.picture = picture + 0.34 * heart * (0.3 + 0.7 * self.lungs)

    def draw_findings(self) -> None:
        for side, lung, centre in (("right", self.right, 0.32), ("left", self.left, 0.69)):
            for zone, height in (("upper", 0.33), ("lower", 0.58)):
                grade = self._grade(f"opacity_{side}_{zone}")
                blob = self._blob(self._jitter(centre, 0.03), self._jitter(height, 0.03), self._jitter(0.075, 0.012))
                self.picture += (np.float32(0.10) * grade + np.float32(0.07) * grade**2) * blob * (0.15 + 0.85 * lung)
            level = (
                self._jitter(0.575, 0.03) - 1.6 * (self.x - 0.5 - (centre - 0.5) * 0.6) ** 2
            )  # fluid with a meniscus
            fluid = _step((self.y - level) / 0.02) * lung
            self.picture += np.float32(0.42) * self._grade(f"effusion_{side}") * fluid
            nodule = self._blob(self._jitter(centre, 0.05), self._jitter(0.43, 0.13), self._jitter(0.026, 0.004))
            self.picture += np.float32(0.62) * self._grade(f"nodule_{side}") * nodule
        case_x, case_y = self._jitter(0.79, 0.02), self._jitter(0.25, 0.02)
        case = _step((0.05 - np.abs(self.x - case_x)) / 0.008) * _step((0.036 - np.abs(self.y - case_y)) / 0.008)
        along = np.clip((self.y - case_y) / (0.60 - case_y), 0.0, 1.0)  # the lead runs down into the heart
        lead_x = case_x - (case_x - 0.55) * np.sin(1.5708 * along)
        inside = ((self.y > case_y) & (self.y < 0.60)).astype(np.float32)
        lead = np.exp(-0.5 * ((self.x - lead_x) / 0.011) ** 2) * inside
        self.picture += self._grade("device") * (0.75 * case + np.float32(0.5) * lead * (1 - case))

    def _grade(self, name: str) -> Array:
        return self._column(self.attributes[:, _INDEX[name]])


def _step(x: Array) -> Array:
    """Smooth step: 0 below -1, 1 above 1."""
    t = np.clip(0.5 * x + 0.5, 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def _scan(picture: Array, scanner: Scanner, size: int, random: np.random.Generator) -> Array:
    picture = _blur(picture, scanner.blur * size / 64)
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    radius = grid[None, :] ** 2 + grid[:, None] ** 2
    picture = np.clip(picture, 0.0, 1.0) ** np.float32(scanner.gamma)
    picture = (picture - 0.4) * scanner.contrast + 0.4 + scanner.brightness
    picture = picture * (1.0 - scanner.vignette * radius * 2)
    if scanner.inverted:
        picture = 1.0 - picture
    picture = picture + scanner.noise * random.standard_normal(picture.shape, dtype=np.float32)
    return np.rint(np.clip(picture, 0.0, 1.0) * 255).astype(np.uint8)[..., None]


def _blur(picture: Array, sigma: float) -> Array:
    """Gaussian blur along both axes, edges repeated."""
    if sigma < 0.2:
        return picture
    radius = int(np.ceil(3 * sigma))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2).astype(np.float32)
    taps /= taps.sum()
    for axis in (1, 2):
        pad = [(0, 0)] * 3
        pad[axis] = (radius, radius)
        wide = np.pad(picture, pad, mode="edge")
        n = picture.shape[axis]
        picture = sum(tap * np.take(wide, np.arange(k, k + n), axis=axis) for k, tap in enumerate(taps))
    return picture
