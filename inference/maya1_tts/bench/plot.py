"""The report as one SVG picture: how TTFA is distributed under each load, and what came out in a second."""

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

# Okabe and Ito's palette, which people with colour-blindness can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
WIDTH, HEIGHT = 760, 360
LEFT, TOP, RIGHT, BOTTOM = 60, 54, 600, 310
TICKS = (1, 2, 5)


def plot(title: str, ttfa: Mapping[str, Sequence[float]], objective: float) -> str:
    """ttfa: for each load, the seconds to first audio of its good requests. objective: seconds.

    The curves are cumulative: the share of requests (y) that had their first sound by then (x, logarithmic).
    """
    values = [max(value, 1e-5) for one in ttfa.values() for value in one] + [objective]
    low, high = math.log10(min(values)) - 0.05, math.log10(max(values)) + 0.05

    def x(seconds: float) -> float:
        return LEFT + (math.log10(max(seconds, 1e-5)) - low) / (high - low) * (RIGHT - LEFT)

    def y(share: float) -> float:
        return BOTTOM - share * (BOTTOM - TOP)

    def text(x: float, y: float, content: str, anchor: str = "middle") -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'

    def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
        return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {style}/>'

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        '<rect width="100%" height="100%" fill="white"/>',
        text(LEFT, 24, title, "start"),
    ]
    for tenth in range(0, 11, 2):
        out.append(line(LEFT, y(tenth / 10), RIGHT, y(tenth / 10), 'stroke="#ddd"'))
        out.append(text(LEFT - 8, y(tenth / 10) + 4, f"{tenth * 10} %", "end"))
    for power in range(-5, 4):
        for tick in (step * 10.0**power for step in TICKS):
            if low <= math.log10(tick) <= high:
                out.append(line(x(tick), TOP, x(tick), BOTTOM, 'stroke="#eee"'))
                out.append(text(x(tick), BOTTOM + 16, f"{tick * 1000:g}"))
    out.append(text((LEFT + RIGHT) / 2, BOTTOM + 36, "time to first audio, ms"))
    out.append(line(x(objective), TOP, x(objective), BOTTOM, 'stroke="#666" stroke-dasharray="4 3"'))
    out.append(text(x(objective), TOP - 4, "objective"))
    for number, (load, seconds) in enumerate(ttfa.items()):
        colour = COLOURS[number % len(COLOURS)]
        points, share = [], 0.0
        for rank, value in enumerate(sorted(seconds), 1):
            points.append(f"{x(value):.1f},{y(share):.1f}")
            share = rank / len(seconds)
            points.append(f"{x(value):.1f},{y(share):.1f}")
        out.append(
            f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        )
        out.append(line(RIGHT + 12, TOP + 20 * number, RIGHT + 32, TOP + 20 * number, f'stroke="{colour}"'))
        out.append(text(RIGHT + 38, TOP + 20 * number + 4, f"{load} (n={len(seconds)})", "start"))
    return "\n".join([*out, "</svg>"]) + "\n"
