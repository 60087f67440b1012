"""The page's colours, light and dark, and their contrast: tests hold them to WCAG 2.2's AA.

The series are after Okabe & Ito 2008, which the colour-blind tell apart, darkened or lightened
until they stand out from the page. Heat is one ramp of lightness, so that it also prints grey.
"""

LIGHT = {
    "page": "#fcfbf8",
    "panel": "#f4f2ec",
    "ink": "#1d1c1a",
    "soft": "#5d5a53",
    "rule": "#d8d4ca",
    "link": "#0b5a94",
    "good": "#006b4f",
    "bad": "#b02a1c",
    "s0": "#0072b2",
    "s1": "#c44e00",
    "s2": "#00805d",
    "s3": "#a8467f",
    "s4": "#6d5c00",
    "s5": "#3d4f8f",
    "rest": "#8a867c",
    "code": "#f5d08a",
    "tokenizer": "#f0e6a0",
    "head": "#8cc6ea",
    "trunk": "#86d0b8",
    "small": "#dcb7cd",
    "on-area": "#1d1c1a",
}
DARK = {
    "page": "#141518",
    "panel": "#1d1f23",
    "ink": "#e9e6df",
    "soft": "#a8a49b",
    "rule": "#34363c",
    "link": "#86c5f2",
    "good": "#5fcfa4",
    "bad": "#ff9a8a",
    "s0": "#56b4e9",
    "s1": "#f0903c",
    "s2": "#2fbf95",
    "s3": "#e08cc0",
    "s4": "#d9c64a",
    "s5": "#a5b2ee",
    "rest": "#7d7a73",
    "code": "#7a5a16",
    "tokenizer": "#5f5817",
    "head": "#1f577c",
    "trunk": "#1c5f4c",
    "small": "#6a3f57",
    "on-area": "#f4f1ea",
}
SERIES = ("s0", "s1", "s2", "s3", "s4", "s5")

# Bits from which a token has a colour, and (background, text) of each, below the first none.
HEAT_FROM = (0.25, 1.0, 2.0, 4.0, 6.0, 9.0, 13.0)
HEAT_LIGHT = (
    ("#fdf3dc", "#1d1c1a"),
    ("#fce5b4", "#1d1c1a"),
    ("#f9d284", "#1d1c1a"),
    ("#f3b755", "#1d1c1a"),
    ("#e99a3f", "#1d1c1a"),
    ("#dc7a3a", "#1d1c1a"),
    ("#8f2f14", "#fcfbf8"),
)
HEAT_DARK = (
    ("#231f19", "#e9e6df"),
    ("#33291a", "#e9e6df"),
    ("#48361b", "#e9e6df"),
    ("#60441a", "#f4f1ea"),
    ("#7b5317", "#f4f1ea"),
    ("#c98a2e", "#141518"),
    ("#f6c667", "#141518"),
)


def luminance(color: str) -> float:
    """Relative luminance of "#rrggbb". Source: WCAG 2.2.  "#ffffff" -> 1.0"""
    parts = (int(color[place : place + 2], 16) / 255 for place in (1, 3, 5))
    r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, 1 to 21. Source: WCAG 2.2.  "#000000", "#ffffff" -> 21.0"""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def heat_class(bits: float) -> int:
    """The class of a token: 0 without a colour, up to the number of `HEAT_FROM`.  1.5 -> 2"""
    return sum(bits >= limit for limit in HEAT_FROM)


def stylesheet() -> str:
    """The colours as CSS: the reader's choice (`data-theme`) goes over what the system prefers."""
    light, dark = _variables(LIGHT, HEAT_LIGHT), _variables(DARK, HEAT_DARK)
    return (
        f":root{{color-scheme:light;{light}}}\n"
        f"@media screen and (prefers-color-scheme:dark)"
        f"{{:root:not([data-theme=light]){{color-scheme:dark;{dark}}}}}\n"
        f"@media screen{{:root[data-theme=dark]{{color-scheme:dark;{dark}}}}}\n"
    )


def _variables(colors: dict[str, str], heat: tuple[tuple[str, str], ...]) -> str:
    named = [f"--{name}:{color}" for name, color in colors.items()]
    for number, (back, ink) in enumerate(heat, 1):
        named += [f"--h{number}:{back}", f"--t{number}:{ink}"]
    return ";".join(named)
