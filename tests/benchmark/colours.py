"""Contrast between colours as a browser computes them (WCAG 2)."""

from __future__ import annotations

import re


def luminance(colour: str) -> float:
    parts = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels(colour)[:3]]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def over(colour: str, paper: str) -> str:
    """The colour that is seen where a colour, opaque or not, lies on paper."""
    *parts, alpha = channels(colour)
    mixed = (alpha * a + (1 - alpha) * b for a, b in zip(parts, channels(paper), strict=False))
    return f"rgb({', '.join(str(255 * value) for value in mixed)})"


def channels(colour: str) -> list[float]:
    """Red, green, blue and alpha from 0 to 1 of a computed colour: ``rgb(...)``, ``rgba(...)``, ``color(srgb ...)``."""
    numbers = [float(number) for number in re.findall(r"[\d.]+", colour)]
    scale = 1 if colour.startswith("color(") else 255
    return [*(number / scale for number in numbers[:3]), *(numbers[3:] or [1.0])]
