"""Who is drawn: the parameters of a portrait, and how a random but plausible person is sampled.

Everything is a tensor with one row a person, so that a batch of different people is drawn by the same operations.
Lengths are in head units: the eyes are at 0, the crown near -0.5, the chin near 0.5. Knows nothing of pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Parameters drawn uniformly from a range, independent of each other.
UNIFORM: dict[str, tuple[float, float]] = {
    # placing of the head on the screen
    "scale": (1.14, 1.32), "centre_x": (-0.05, 0.05), "centre_y": (-0.13, -0.05),
    # face
    "face_width": (0.345, 0.385), "chin": (0.48, 0.535), "jaw": (0.165, 0.225), "cheeks": (0.125, 0.17),
    "ear": (0.068, 0.088), "neck": (0.150, 0.18), "shoulders": (0.74, 0.90), "blush": (0.05, 0.36), "age": (0.0, 1.0),
    "freckles": (-2.0, 1.0),
    # eyes and brows
    "eye_x": (0.150, 0.170), "eye_width": (0.080, 0.094), "eye_height": (0.043, 0.057), "eye_tilt": (-0.06, 0.14),
    "iris_radius": (0.043, 0.051), "brow_y": (0.112, 0.138), "brow_thickness": (0.011, 0.021),
    "brow_arch": (0.012, 0.042), "brow_tilt": (-0.10, 0.10),
    # nose and mouth
    "nose_y": (0.145, 0.175), "nose_width": (0.048, 0.068), "nose_depth": (0.5, 1.0),
    "mouth_y": (0.285, 0.315), "mouth_width": (0.116, 0.140), "upper_lip": (0.020, 0.034), "lower_lip": (0.028, 0.044),
    "cupid": (0.15, 0.45), "mouth_curve": (-0.004, 0.020), "gloss": (0.05, 0.6),
    # hair texture
    "strand_phase": (0.0, 6.28), "strand_contrast": (0.06, 0.17), "shine": (0.1, 0.42),
    # glasses: half width, half height, corner radius, line width
    "lens_width": (0.120, 0.140), "lens_height": (0.088, 0.118), "lens_corner": (0.03, 0.12), "rim": (0.006, 0.012),
    # light
    "light_y": (-0.75, -0.35), "light_strength": (0.75, 1.15), "rim_light": (0.1, 0.65),
    # background: two anchors and a phase used by every kind
    "place_x": (-1.0, 1.0), "place_y": (-0.7, 0.3), "place_size": (0.3, 0.8), "place_phase": (0.0, 1.0),
    # clothes
    "neckline": (0.0, 1.0), "pattern_scale": (0.6, 1.4), "pattern_strength": (0.15, 0.6),
}  # fmt: skip

SKIN = ["ffe6d8", "fddcc8", "f9d0b6", "f1c3a2", "e8b792", "d9a47e", "c68e6a", "ab7654", "8c5d43", "6e4735", "54362a"]
HAIR = ["1d1716", "2e211c", "4a3023", "6b442c", "94633c", "c9995a", "ecd09a", "7a2f1e", "b5522a", "d9773a", "8f8f95",
        "dcdce2", "3f5f9e", "c25a8a", "2f7d78", "7d5aa8"]  # fmt: skip
HAIR_NAMES = ("black", "black", "brown", "brown", "brown", "blond", "blond", "auburn", "red", "red", "grey", "white",
              "blue", "pink", "green", "purple")  # fmt: skip
IRIS = ["4a2f1e", "6b4426", "8a6236", "4f7a52", "6a9a74", "4f84b5", "7eb0d8", "6b7686", "2e2320"]
LIPSTICK = ["c23a4b", "b02a3c", "d4626c", "a8324f", "cf5a50", "8e2f48"]
METAL = ["e8c46a", "d9dde3", "f0e6e0", "c9574f", "4aa0a8"]
FRAME = ["17161a", "2c2119", "5a3720", "7d2f33", "c8a25a", "31435f", "9aa0aa"]

# Background (three colours) and clothes (two) that go together.
PALETTES = [
    ("f7d9c4", "e9a98b", "fff3e2", "2f4858", "f2efe9"), ("bfe0e2", "6fa8b5", "f4fbf7", "e76f51", "fff1e0"),
    ("2b2d42", "4a4e7a", "f2b880", "8d99ae", "edf2f4"), ("ffe8b5", "f4b860", "fff9e8", "3d5a80", "e0fbfc"),
    ("d8e2dc", "9db5a4", "ffe5d9", "f4978e", "fff4ee"), ("243b4a", "3f6c7c", "ffd27f", "c8553d", "f7e7ce"),
    ("e6d7f2", "a88fcf", "fff0fa", "5b4b8a", "f5e9ff"), ("cfe8c9", "7fb77e", "fdfbe4", "386641", "f2e8cf"),
    ("f2d0d9", "c97b90", "fff4f2", "7b2d43", "f9e4e0"), ("3a2c3a", "7a4b5a", "ffb199", "d9b08c", "fdf0e3"),
    ("c8d9f0", "6f8fc9", "ffffff", "1d3461", "e9eef7"), ("f0e4d0", "c8a97e", "fffaf0", "6b705c", "ede6d6"),
    ("1f3a3d", "2f6f69", "e9d985", "e0b1a0", "fff7e6"), ("dfe7ea", "9fb3bd", "ffffff", "b23a48", "fcefef"),
    ("ffd9d0", "f49a8a", "fff6e5", "287271", "eaf4f0"), ("3b3355", "5d5d9a", "bfcde0", "fefcfd", "5d5d81"),
    ("e3efe9", "8cc0b5", "fff3d6", "f2a65a", "58355e"), ("20252b", "454f59", "d6a76a", "3c4f65", "d8dee6"),
    ("f6efd8", "d6b46f", "ffffff", "9c3d2e", "f1ddc4"), ("b7d3ee", "4f86b8", "fff5d8", "f3c14b", "3b3a3a"),
]  # fmt: skip

BACKGROUNDS = ("gradient", "bokeh", "window", "shelves", "landscape", "studio", "sunset")
CLOTHES = ("t-shirt", "v-neck", "shirt", "turtleneck", "jacket", "blouse")
PATTERNS = ("plain", "stripes", "pinstripes", "dots", "checks")
BEARDS = ("none", "stubble", "moustache", "goatee", "full")
COVERS = ("none", "beanie", "headscarf")


@dataclass(frozen=True)
class HairStyle:
    """A cut as shape parameters; the renderer knows no style names.

    Args:
        weight: how often women, then men, wear it.
        top, side: volume over the skull. hairline: height of the forehead's edge; arch: its fall at the temples.
        length: lower end of the hair behind the head. width: half width of that hair beyond the face.
        opening: half width left free between the side locks, as a part of the face's; lock_end: lower end of the
            locks or sideburns.
        part: where it is parted. sweep: slope of the fringe to the left and right of the part.
        jag: raggedness of the edges. curl, curl_scale: lumps of the outline. wave: of long hair.
        bun, bun_y, bun_radius: sideways place, height and size of a bun (radius 0: none; bun_x > 0: two of them).
        tail: whether a ponytail hangs behind. density: 0 bald … 1 opaque.
    """

    weight: tuple[float, float]
    top: float = 0.07
    side: float = 0.038
    hairline: float = -0.31
    arch: float = 0.16
    length: float = 0.05
    width: float = 0.0
    opening: float = 0.90
    lock_end: float = 0.02
    part: float = 0.0
    sweep: tuple[float, float] = (0.0, 0.0)
    jag: float = 0.006
    curl: float = 0.0
    curl_scale: float = 16.0
    wave: float = 0.0
    bun_x: float = 0.0
    bun_y: float = -0.60
    bun_radius: float = 0.0
    tail: float = 0.0
    density: float = 1.0


HAIR_STYLES: dict[str, HairStyle] = {
    "bald": HairStyle((0.0, 0.6), density=0.0),
    "buzz cut": HairStyle((0.15, 0.9), top=0.035, side=0.006, hairline=-0.285, arch=0.13, jag=0.002, density=0.62,
                          lock_end=-0.02),
    "short": HairStyle((0.5, 1.3), top=0.076, side=0.032, hairline=-0.275, arch=0.12, jag=0.009, lock_end=0.07),
    "side part": HairStyle((0.4, 1.4), top=0.092, side=0.034, hairline=-0.345, part=0.17, sweep=(0.34, 0.5), jag=0.005,
                           lock_end=0.05),
    "quiff": HairStyle((0.1, 1.1), top=0.132, side=0.018, hairline=-0.30, arch=0.10, jag=0.010, lock_end=0.04),
    "swept fringe": HairStyle((0.9, 0.8), top=0.08, side=0.03, hairline=-0.37, part=0.22, sweep=(0.52, 0.6), jag=0.012,
                              lock_end=0.13),
    "curly": HairStyle((0.7, 1.0), top=0.12, side=0.075, hairline=-0.25, jag=0.012, curl=0.020, curl_scale=15,
                       lock_end=0.06),
    "afro": HairStyle((0.7, 0.5), top=0.184, side=0.17, hairline=-0.28, jag=0.014, curl=0.010, curl_scale=30,
                      length=0.22, width=0.12, lock_end=0.08),
    "bob": HairStyle((1.2, 0.0), top=0.08, side=0.05, hairline=-0.37, part=0.12, sweep=(0.45, 0.62), length=0.42,
                     width=0.075, opening=0.84, lock_end=0.40),
    "bangs": HairStyle((1.2, 0.0), top=0.08, side=0.045, hairline=-0.165, arch=0.06, jag=0.018, length=0.95, width=0.07,
                       opening=0.85, lock_end=0.9),
    "long straight": HairStyle((1.4, 0.15), top=0.068, side=0.035, hairline=-0.385, sweep=(0.62, 0.62), length=1.0,
                               width=0.06, opening=0.86, lock_end=0.95),
    "long wavy": HairStyle((1.5, 0.1), top=0.088, side=0.05, hairline=-0.38, part=-0.10, sweep=(0.62, 0.5), length=0.92,
                           width=0.09, opening=0.84, lock_end=0.85, wave=0.028),
    "long curly": HairStyle((1.0, 0.1), top=0.12, side=0.09, hairline=-0.35, sweep=(0.4, 0.4), length=0.66, width=0.16,
                            opening=0.87, lock_end=0.60, wave=0.02, curl=0.022, curl_scale=17, jag=0.012),
    "bun": HairStyle((1.0, 0.12), top=0.044, side=0.015, hairline=-0.315, arch=0.13, sweep=(0.10, 0.10), jag=0.002,
                     bun_radius=0.15, bun_y=-0.58, lock_end=-0.03),
    "ponytail": HairStyle((1.1, 0.1), top=0.056, side=0.02, hairline=-0.37, part=0.1, sweep=(0.3, 0.42), tail=1.0,
                          lock_end=0.06),
    "twin buns": HairStyle((0.35, 0.0), top=0.048, side=0.02, hairline=-0.37, sweep=(0.42, 0.42), bun_x=0.29,
                           bun_y=-0.47, bun_radius=0.13, lock_end=-0.01),
}  # fmt: skip


@dataclass(frozen=True)
class Identities:
    """People as named parameters, each (N,) or, for colours, (N, 3) in 0…1; choices are indices in float32."""

    values: dict[str, Tensor]

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self.__dict__["values"][name]
        except KeyError:
            raise AttributeError(f"Identities has no parameter {name!r}") from None

    def __len__(self) -> int:
        return len(self.values["scale"])

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Identities:
        """The chosen people; one number keeps the batch dimension."""
        rows = [index] if isinstance(index, int) else index
        return Identities({name: value[rows] for name, value in self.values.items()})

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Identities:
        return Identities({name: value.to(device=device, dtype=dtype) for name, value in self.values.items()})

    def repeat(self, times: int) -> Identities:
        """Each person `times` in a row: (N·times), as a video flattened over its frames needs it."""
        return Identities({name: value.repeat_interleave(times, 0) for name, value in self.values.items()})

    def per_pixel(self) -> Identities:
        """The same values as (N, 1, 1) and (N, 3, 1, 1), ready to be combined with planes."""
        return Identities({name: value[..., None, None] for name, value in self.values.items()})


def sample_identities(num_people: int, generator: torch.Generator) -> Identities:
    """Random people on the CPU in float32; the same generator state gives the same people."""
    draw = _Draw(num_people, generator)
    values = {name: draw.uniform(*limits) for name, limits in UNIFORM.items()}
    values["feminine"] = draw.chance(0.5)
    values |= _hair(draw, values["feminine"])
    values |= _colours(draw, values)
    values |= _accessories(draw, values)
    values |= _adjustments(draw, values)
    return Identities(values)


class _Draw:
    """Random columns of one length from one generator."""

    def __init__(self, rows: int, generator: torch.Generator) -> None:
        self.rows, self.generator = rows, generator

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(self.rows, generator=self.generator) * (high - low) + low

    def chance(self, probability: float) -> Tensor:
        return (self.uniform() < probability).float()

    def choice(self, weights: Tensor) -> Tensor:
        """Index by weights (K,) or (rows, K)."""
        weights = weights.expand(self.rows, -1)
        return torch.multinomial(weights, 1, generator=self.generator)[:, 0]

    def colour(self, index: Tensor, palette: list[str], jitter: float) -> Tensor:
        """Palette colours with a little noise, mostly in brightness."""
        noise = (self.uniform() - 0.5)[:, None] + 0.4 * torch.rand(self.rows, 3, generator=self.generator) - 0.2
        return (hex_colours(palette)[index] + jitter * noise).clamp(0, 1)


def hex_colours(palette: Sequence[str]) -> Tensor:
    """(K, 3) float32 in 0…1 from strings such as "ffe3d0"."""
    return torch.tensor([[int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)] for code in palette])


def _hair(draw: _Draw, feminine: Tensor) -> dict[str, Tensor]:
    styles = list(HAIR_STYLES.values())
    women, men = (torch.tensor([style.weight[i] for style in styles]) for i in (0, 1))
    index = draw.choice(torch.where(feminine[:, None] > 0, women, men))
    names = ("top", "side", "hairline", "arch", "length", "width", "opening", "lock_end", "part", "jag", "curl",
             "curl_scale", "wave", "bun_x", "bun_y", "bun_radius", "tail", "density")  # fmt: skip
    hair = {f"hair_{name}": torch.tensor([getattr(style, name) for style in styles])[index] for name in names}
    sweep = torch.tensor([style.sweep for style in styles])[index]
    # Half of the people comb it the other way.
    mirror = draw.chance(0.5)
    hair["hair_part"] = hair["hair_part"] * (1 - 2 * mirror)
    hair["hair_sweep_left"] = torch.where(mirror > 0, sweep[:, 1], sweep[:, 0])
    hair["hair_sweep_right"] = torch.where(mirror > 0, sweep[:, 0], sweep[:, 1])
    for name, spread in (("top", 0.18), ("side", 0.2), ("length", 0.08), ("width", 0.2), ("wave", 0.3), ("curl", 0.2)):
        hair[f"hair_{name}"] = hair[f"hair_{name}"] * draw.uniform(1 - spread, 1 + spread)
    hair["hair_hairline"] = hair["hair_hairline"] + draw.uniform(-0.02, 0.02)
    hair["tail_side"] = draw.chance(0.5) * 2 - 1
    return {"hair_style": index.float(), **hair}


def _colours(draw: _Draw, values: dict[str, Tensor]) -> dict[str, Tensor]:
    rows, feminine = draw.rows, values["feminine"]
    skin_index = draw.choice(torch.tensor([1.0, 1.3, 1.4, 1.3, 1.1, 1.0, 0.9, 0.8, 0.8, 0.7, 0.6]))
    skin = draw.colour(skin_index, SKIN, 0.04)
    # Fair hair is rare on dark skin, fashion colours are rare everywhere.
    weights = torch.tensor([1.3, 1.4, 1.4, 1.2, 1.1, 1.0, 0.8, 0.6, 0.7, 0.5, 0.5, 0.5, 0.12, 0.2, 0.15, 0.15])
    dark_only = torch.tensor([1.0] * 4 + [0.25] + [0.02] * 5 + [0.6, 0.4] + [0.6] * 4)
    hair_index = draw.choice(torch.where(skin_index[:, None] >= 6, weights * dark_only, weights.expand(rows, -1)))
    hair = draw.colour(hair_index, HAIR, 0.06)
    shade = torch.tensor([0.84, 0.70, 0.67]) + 0.04 * (1 - skin)
    lip_base = skin * torch.tensor([0.86, 0.55, 0.56]) + torch.tensor([0.04, 0.0, 0.015])
    lipstick = draw.colour(draw.choice(torch.ones(len(LIPSTICK))), LIPSTICK, 0.06)
    made_up = (feminine * draw.chance(0.6) * draw.uniform(0.35, 0.95))[:, None]
    eye_shadow = draw.colour(draw.choice(torch.ones(len(PALETTES))), [row[1] for row in PALETTES], 0.1)
    palette = torch.stack([hex_colours(row) for row in PALETTES])[draw.choice(torch.ones(len(PALETTES)))]
    palette = (palette + 0.05 * (torch.rand(rows, 5, 3, generator=draw.generator) - 0.5)).clamp(0, 1)
    warm = draw.uniform(-1, 1)[:, None]
    return {
        "skin": skin,
        "skin_shadow": skin * shade,
        "shade": shade,
        "hair": hair,
        # Shaded hair turns warmer, not grey or green.
        "hair_shadow": hair * (0.30 + 0.40 * hair) * torch.tensor([1.0, 0.92, 0.90]),
        "hair_colour": hair_index.float(),
        "iris": draw.colour(draw.choice(torch.ones(len(IRIS))), IRIS, 0.08),
        "lips": torch.lerp(lip_base, lipstick * (0.45 + 0.55 * skin.mean(1, keepdim=True)), made_up),
        "lid": torch.lerp(torch.ones(rows, 3), eye_shadow, 0.65 * made_up),
        "metal": draw.colour(draw.choice(torch.ones(len(METAL))), METAL, 0.05),
        "frame": draw.colour(draw.choice(torch.ones(len(FRAME))), FRAME, 0.04),
        "back": palette[:, 0], "back_2": palette[:, 1], "back_3": palette[:, 2],
        "cloth": palette[:, 3], "cloth_2": palette[:, 4],
        "cover_colour": torch.where(draw.chance(0.5)[:, None] > 0, palette[:, 1], palette[:, 3]),
        "light": 1 + (warm + 0.3) * torch.tensor([0.03, 0.0, -0.04]),
    }  # fmt: skip


def _accessories(draw: _Draw, values: dict[str, Tensor]) -> dict[str, Tensor]:
    feminine = values["feminine"]
    beard = draw.choice(torch.tensor([1.0, 0.5, 0.18, 0.25, 0.5])).float() * (1 - feminine)
    light_side = draw.chance(0.5) * 2 - 1
    women, men = torch.tensor([1.0, 0.07, 0.12]), torch.tensor([1.0, 0.12, 0.0])
    cover = draw.choice(torch.where(feminine[:, None] > 0, women, men)).float()
    return {
        "beard": beard,
        "beard_length": draw.uniform(0.012, 0.05),
        "cover": cover,
        "glasses": draw.chance(0.30),
        "tinted": draw.chance(0.5) * draw.uniform(0.0, 0.25),
        "earring": draw.choice(torch.tensor([1.0, 0.6, 0.5])).float() * feminine * (cover != COVERS.index("headscarf")),
        "background": draw.choice(torch.tensor([0.9, 1.2, 1.1, 0.9, 1.0, 1.0, 0.8])).float(),
        "clothes": draw.choice(
            torch.where(feminine[:, None] > 0, torch.tensor([1.0, 0.8, 0.7, 0.7, 0.7, 1.1]),
                        torch.tensor([1.0, 0.6, 1.2, 0.7, 1.1, 0.0]))
        ).float(),
        "tie": draw.chance(0.6) * (1 - feminine),
        "pattern": draw.choice(torch.tensor([2.2, 0.6, 0.4, 0.5, 0.5])).float(),
        "light_side": light_side,
        "light_x": light_side * draw.uniform(0.35, 0.8),
    }  # fmt: skip


def _adjustments(draw: _Draw, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """What follows from the rest: softer features of women, room for tall hair, no hair through a hat."""
    feminine, cover, style = values["feminine"], values["cover"], values["hair_style"]
    bare = (cover == 0).float()
    bun_radius, tail = values["hair_bun_radius"] * bare, values["hair_tail"] * bare
    top = torch.where(cover > 0, torch.full_like(cover, 0.10), values["hair_top"])
    crown = torch.where(bun_radius > 0, values["hair_bun_y"] - bun_radius, -0.475 - top)
    scale = values["scale"] - 0.09 * (crown < -0.66).float()
    bald = torch.tensor([name == "bald" for name in HAIR_STYLES])[style.long()]
    return {
        "hair_bun_radius": bun_radius, "hair_tail": tail, "hair_top": top,
        "hair_curl": values["hair_curl"] * bare,
        "hair_side": torch.where(cover > 0, values["hair_side"].clamp(max=0.03), values["hair_side"]),
        "hair_width": torch.where(cover > 0, values["hair_width"].clamp(max=0.07), values["hair_width"]),
        "hair_density": values["hair_density"] * (cover != COVERS.index("headscarf")).float(),
        "scale": scale,
        "centre_y": torch.maximum(values["centre_y"], -0.92 - crown * scale).clamp(max=0.04),
        "lashes": feminine * draw.uniform(0.55, 1.0) + (1 - feminine) * 0.22,
        "jaw": values["jaw"] - 0.02 * feminine + 0.03 * (1 - feminine),
        "chin": values["chin"] - 0.015 * feminine,
        "neck": values["neck"] - 0.018 * feminine + 0.012 * (1 - feminine),
        "shoulders": values["shoulders"] - 0.06 * feminine + 0.04 * (1 - feminine),
        "brow_thickness": values["brow_thickness"] * (1 - 0.25 * feminine),
        "upper_lip": values["upper_lip"] * (0.8 + 0.3 * feminine),
        "lower_lip": values["lower_lip"] * (0.85 + 0.2 * feminine),
        "brow": torch.where(bald[:, None], values["hair"] * 0.8, values["hair"] * 0.72),
    }  # fmt: skip
