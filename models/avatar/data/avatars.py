"""Procedural avatars: attributes -> SVG -> a 96x96 picture that varies beyond its attributes.

Drawing parts: DiceBear "personas" (Draftbit, CC BY 4.0). What the attributes do not fix varies
continuously: pose, colour within its name, light, background pattern, fabric, grain.
"""

import colorsys
import io
import math

import numpy as np
import resvg_py
from PIL import Image
from scipy.ndimage import gaussian_filter

SIZE = 96

# class names in label order; -1 = not visible in the picture (hair colour under a cap, ...)
ATTRIBUTES = {
    "background": ["red", "orange", "yellow", "green", "blue", "purple", "pink", "gray", "white"],
    "hair_style": ["long", "sideShave", "shortCombover", "curlyHighTop", "bobCut", "curly", "pigtails",
                   "curlyBun", "buzzcut", "bobBangs", "bald", "balding", "cap", "bunUndercut", "fade",
                   "beanie", "straightBun", "extraLong", "shortComboverChops", "mohawk"],
    "hair_color": ["black", "brown", "blond", "red", "gray", "pink", "blue"],
    "skin": ["light", "tan", "brown", "dark"],
    "eyes": ["open", "sleep", "wink", "glasses", "happy", "sunglasses"],
    "mouth": ["smile", "frown", "surprise", "pacifier", "bigSmile", "smirk", "lips"],
    "nose": ["mediumRound", "smallRound", "wrinkles"],
    "facial_hair": ["none", "beardMustache", "pyramid", "walrus", "goatee", "shadow", "soulPatch"],
    "clothing": ["squared", "rounded", "small", "checkered"],
    "clothing_color": ["red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black"],
}
NAMES = list(ATTRIBUTES)

# name -> (hue in degrees, saturation, value, spread of the three)
CLOTH = {"red": (357, .78, .80, 4, .06, .05), "orange": (26, .85, .93, 4, .06, .04),
         "yellow": (50, .75, .95, 4, .08, .03), "green": (130, .60, .62, 12, .08, .06),
         "blue": (219, .72, .82, 8, .08, .07), "purple": (270, .60, .66, 8, .08, .06),
         "pink": (332, .48, .96, 6, .06, .03), "white": (220, .03, .95, 40, .02, .03),
         "black": (250, .15, .16, 30, .08, .04)}
BACKGROUND = {"red": (358, .66, .80, 4, .07, .06), "orange": (26, .66, .94, 4, .08, .04),
              "yellow": (50, .55, .95, 4, .08, .03), "green": (128, .42, .70, 14, .08, .07),
              "blue": (212, .50, .84, 10, .09, .07), "purple": (270, .46, .72, 8, .08, .06),
              "pink": (332, .36, .96, 6, .06, .03), "gray": (220, .05, .52, 60, .03, .05),
              "white": (220, .03, .94, 60, .02, .03)}
HAIR = {"black": (250, .25, .17, 20, .10, .04), "brown": (20, .58, .42, 5, .07, .05),
        "blond": (43, .55, .92, 4, .08, .04), "red": (12, .75, .76, 4, .06, .05),
        "gray": (225, .09, .74, 20, .03, .05), "pink": (330, .52, .92, 6, .07, .04),
        "blue": (218, .65, .78, 8, .07, .06)}
SKIN = {"light": (17, .25, .96, 4, .03, .02), "tan": (22, .44, .84, 4, .04, .03),
        "brown": (16, .52, .62, 4, .04, .03), "dark": (14, .48, .38, 4, .05, .03)}
LONG_STYLES = {"long", "bobCut", "pigtails", "curlyBun", "bobBangs", "straightBun", "extraLong"}


def sample_attributes(rng):
    """One label per attribute: {name: class index}. Facial hair is rarer under long hair."""
    a = {k: int(rng.integers(len(v))) for k, v in ATTRIBUTES.items()}
    style = ATTRIBUTES["hair_style"][a["hair_style"]]
    if rng.random() < (.80 if style in LONG_STYLES else .35):
        a["facial_hair"] = 0
    return a


def visible(a):
    """The labels that can be read off the picture; the others become -1."""
    a = dict(a)
    if ATTRIBUTES["hair_style"][a["hair_style"]] in ("bald", "cap", "beanie"):
        a["hair_color"] = -1
    if ATTRIBUTES["facial_hair"][a["facial_hair"]] == "beardMustache":
        a["mouth"] = -1  # the beard is drawn with its own mouth
    return a


def color(rng, spec):
    """A random RGB triple (0..1) within a named colour."""
    h, s, v, dh, ds, dv = spec
    u = rng.uniform(-1, 1, 3)
    return np.array(colorsys.hsv_to_rgb(((h + dh * u[0]) % 360) / 360, min(1, max(0, s + ds * u[1])),
                                        min(1, max(0, v + dv * u[2]))))


def css(rgb):
    return "#%02x%02x%02x" % tuple(int(255 * min(1, max(0, c)) + .5) for c in rgb)


def shade(rgb, f):
    """f > 0 lighter, f < 0 darker."""
    return rgb + (1 - rgb) * f if f > 0 else rgb * (1 + f)


def background_svg(rng, base):
    """(defs, body): a gradient with one of four patterns around the base colour, soft as if out of focus."""
    angle, depth = rng.uniform(0, 360), rng.uniform(.03, .13)
    defs = (f'<linearGradient id="bg" gradientTransform="rotate({angle:.0f} .5 .5)">'
            f'<stop offset="0" stop-color="{css(shade(base, depth))}"/>'
            f'<stop offset="1" stop-color="{css(shade(base, -depth))}"/></linearGradient>')
    body = '<rect x="-4" y="-4" width="72" height="72" fill="url(#bg)"/>'
    kind = rng.random()
    if kind < .30:  # bokeh discs
        for i in range(rng.integers(5, 14)):
            r, x, y = rng.uniform(3, 9), rng.uniform(-2, 66), rng.uniform(-2, 66)
            c, o, e = css(shade(base, rng.uniform(-.35, .45))), rng.uniform(.25, .6), rng.uniform(.55, .9)
            defs += (f'<radialGradient id="b{i}"><stop offset="{e:.2f}" stop-color="{c}" stop-opacity="{o:.2f}"/>'
                     f'<stop offset="1" stop-color="{c}" stop-opacity="0"/></radialGradient>')
            body += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" fill="url(#b{i})"/>'
    elif kind < .50:  # stripes
        p, c = rng.uniform(5, 14), css(shade(base, rng.choice([-1, 1]) * rng.uniform(.08, .28)))
        defs += (f'<pattern id="st" width="{p:.1f}" height="8" patternUnits="userSpaceOnUse" '
                 f'patternTransform="rotate({rng.uniform(0, 180):.0f})">'
                 f'<rect width="{p * rng.uniform(.3, .7):.1f}" height="8" fill="{c}"/></pattern>')
        body += f'<rect x="-4" y="-4" width="72" height="72" fill="url(#st)" opacity="{rng.uniform(.5, 1):.2f}"/>'
    elif kind < .75:  # blobs
        for i in range(rng.integers(3, 9)):
            rx, ry, x, y = rng.uniform(6, 20), rng.uniform(6, 20), rng.uniform(-2, 66), rng.uniform(-2, 66)
            c = css(shade(base, rng.uniform(-.3, .35)))
            defs += (f'<radialGradient id="b{i}"><stop offset=".2" stop-color="{c}" stop-opacity=".6"/>'
                     f'<stop offset="1" stop-color="{c}" stop-opacity="0"/></radialGradient>')
            body += (f'<ellipse rx="{rx:.1f}" ry="{ry:.1f}" fill="url(#b{i})" '
                     f'transform="translate({x:.1f} {y:.1f}) rotate({rng.uniform(0, 180):.0f})"/>')
    return defs, body


def fabric_svg(rng, base, plain):
    """(defs, fill) of the clothing: plain, stripes, dots or knit, faint beside the named colour."""
    dark = base.max() < .3
    c = css(shade(base, rng.uniform(.08, .22) * (1 if dark else rng.choice([-1, 1]))))
    kind = 0 if plain else rng.integers(0, 4)
    p, turn = rng.uniform(2.2, 5), rng.uniform(0, 180)
    inside = {0: "", 1: f'<rect width="{p}" height="{p * rng.uniform(.3, .6):.2f}" fill="{c}"/>',
              2: f'<circle cx="{p / 2}" cy="{p / 2}" r="{p * rng.uniform(.2, .33):.2f}" fill="{c}"/>',
              3: f'<path d="M0 0L{p / 2} {p / 2}L{p} 0" stroke="{c}" stroke-width="{p * .3:.2f}" fill="none"/>'}[int(kind)]
    return (f'<pattern id="cl" width="{p}" height="{p}" patternUnits="userSpaceOnUse" '
            f'patternTransform="rotate({turn:.0f})"><rect width="{p}" height="{p}" fill="{css(base)}"/>{inside}</pattern>'), "url(#cl)"


def to_svg(rng, parts, a):
    """The picture as SVG text, before light and grain."""
    name = {k: ATTRIBUTES[k][i] for k, i in a.items()}
    skin, hair = color(rng, SKIN[name["skin"]]), color(rng, HAIR[name["hair_color"]])
    cloth = color(rng, CLOTH[name["clothing_color"]])
    bg_defs, bg = background_svg(rng, color(rng, BACKGROUND[name["background"]]))
    fabric_defs, fabric = fabric_svg(rng, cloth, name["clothing"] == "checkered")
    left, width = {"squared": (3, 36), "rounded": (0, 42), "small": (10, 22), "checkered": (3, 36)}[name["clothing"]]
    body = parts["body"][name["clothing"]] + f'<rect x="{left}" y="19.9" width="{width}" height="16" fill="@CLOTH"/>'
    face = parts["facialHair"].get(name["facial_hair"], "")
    if name["facial_hair"] == "shadow":
        face = face.replace('opacity=".2"', 'opacity=".42"')
    nose = parts["nose"][name["nose"]].replace('opacity=".36"', 'opacity=".75"').replace('opacity=".12"', 'opacity=".28"')
    hat = color(rng, (26, .60, .93, 5, .06, .04)) if name["hair_style"] == "cap" else color(rng, (356, .60, .86, 4, .06, .05))
    style = parts["hair"][name["hair_style"]].replace("#F29C65", css(hat)).replace("#E15C66", css(hat))
    head = parts["head"]["head"].replace('opacity=".36"', 'opacity=".15"')
    figure = (f'{head}<g transform="translate(20 24)">{parts["eyes"][name["eyes"]]}</g>'
              f'<g transform="translate(2 2)">{style}</g><g transform="translate(11 44)">{body}</g>'
              f'<g transform="translate(23 36)">{parts["mouth"][name["mouth"]]}</g>'
              f'<g transform="translate(24 28)">{nose}</g><g transform="translate(14 26)">{face}</g>')
    figure = figure.replace("@SKIN", css(skin)).replace("@HAIR", css(hair)).replace("@CLOTH", fabric)
    turn, scale = float(np.clip(rng.normal(0, 5), -11, 11)), rng.uniform(.86, 1.12)
    dx, dy = rng.uniform(-4, 4), rng.uniform(-2, 3)
    place = f"translate({32 + dx:.2f} {38 + dy:.2f}) rotate({turn:.2f}) scale({scale:.3f}) translate(-32 -38)"
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64" width="{SIZE}" height="{SIZE}" fill="none">'
            f'<defs>{bg_defs}{fabric_defs}</defs>{bg}<g transform="{place}">{figure}</g></svg>')


class Grain:
    """Film grain correlated over about 3 pixels: random crops of one large field, unit variance."""

    def __init__(self, seed, sigma=1.1, size=1024):
        noise = np.random.default_rng(seed).normal(size=(4, size, size)).astype(np.float32)
        self.field = np.stack([gaussian_filter(n, sigma, mode="wrap") for n in noise])
        self.field /= self.field.std()

    def crop(self, rng):
        y, x = rng.integers(0, self.field.shape[1] - SIZE, 2)
        n = self.field[:, y:y + SIZE, x:x + SIZE]
        return n[0][..., None] + .35 * n[1:4].transpose(1, 2, 0)


GRAIN = (0.8, 2.0)  # range of the grain's strength in 8-bit steps
LIGHT = .16  # largest brightness slope across the picture
YY, XX = np.mgrid[-1:1:SIZE * 1j, -1:1:SIZE * 1j].astype(np.float32)


def render(rng, parts, a):
    """The lit picture without grain, uint8 [96, 96, 3]."""
    png = resvg_py.svg_to_bytes(svg_string=to_svg(rng, parts, a), skip_system_fonts=True)
    x = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=np.float32)
    t = rng.uniform(0, 2 * math.pi)
    slope = rng.uniform(0, LIGHT) * (XX * math.cos(t) + YY * math.sin(t))
    lamp = rng.uniform(-.05, .12) * np.exp(-((XX - rng.uniform(-1, 1)) ** 2 + (YY - rng.uniform(-1, 1)) ** 2) / .6)
    x = x * (rng.uniform(.93, 1.04) + slope + lamp)[..., None]
    return np.clip(x + .5, 0, 255).astype(np.uint8)


def add_grain(x, seed, grain):
    """The same grain for the same seed; uint8 -> uint8."""
    rng = np.random.default_rng(seed)
    return np.clip(x + rng.uniform(*GRAIN) * grain.crop(rng) + .5, 0, 255).astype(np.uint8)
