"""A tree as a picture for notebooks: hides where its nodes stand, and what colours mean.

What comes out is plain SVG between two lines of HTML: no script, nothing from elsewhere, and no text that is markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

ROW, STEP, WIDEST, RADIUS = 26, 130, 650, 7
"""Pixels: between leaves; between depths, at most; of all depths together, about; of a node."""
LOW, MIDDLE, HIGH = (213, 94, 0), (190, 190, 190), (0, 114, 178)
"""Of the values 0, 0.5 and 1: told apart by colour-blind eyes too, on white and on black (Okabe and Ito 2008)."""


class Node(NamedTuple):
    """A path, or several that are left out; parents stand before their children."""

    parent: int | None
    value: float | None
    """What colours it, 0..1; None: unknown, or several."""
    name: str
    """What is read when one points at it."""
    label: str
    """What stands beside it."""
    right: bool | None
    """Whether it ended right: a full ring, or a broken one; None: unknown, or not at its end."""


def picture(title: str, facts: str, nodes: Sequence[Node]) -> str:
    """The tree from left to right, as HTML."""
    places = _places(nodes)
    width = max((x for x, _ in places), default=0) + 2 * RADIUS + 16
    width += max((8 * len(node.label) for node in nodes), default=0)
    height = max((y for _, y in places), default=0) + ROW
    inner = {node.parent for node in nodes}
    drawn = [_link(places[node.parent], places[i], node) for i, node in enumerate(nodes) if node.parent is not None]
    drawn += [_dot(places[i], node, i in inner) for i, node in enumerate(nodes)]
    return (
        f'<div style="max-width:60em;margin-bottom:.5em">{escape(title)}<br><small>{escape(facts)}</small></div>'
        f'<svg role="img" aria-label="{escape(facts)}" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        'style="max-width:100%;height:auto;font:12px sans-serif" fill="currentColor">' + "".join(drawn) + "</svg>"
    )


def _places(nodes: Sequence[Node]) -> list[tuple[float, float]]:
    """Leaves one below the other, in the order of the tree; who has children, in their middle."""
    children: list[list[int]] = [[] for _ in nodes]
    depth: list[int] = []
    for i, node in enumerate(nodes):
        depth.append(0 if node.parent is None else depth[node.parent] + 1)
        if node.parent is not None:
            children[node.parent].append(i)
    step = min(STEP, WIDEST / max(1, max(depth, default=0)))
    rows: dict[int, float] = {}
    waiting = [i for i, node in enumerate(nodes) if node.parent is None][::-1]
    while waiting:  # no recursion: a tree may be deeper than Python's stack
        i = waiting.pop()
        if not children[i]:
            rows[i] = ROW * (len(rows) + 1)
        waiting += children[i][::-1]
    for i in reversed(range(len(nodes))):  # children stand after parents: they are placed first
        if children[i]:
            rows[i] = (rows[children[i][0]] + rows[children[i][-1]]) / 2
    return [(2 * RADIUS + step * depth[i], rows[i]) for i in range(len(nodes))]


def _link(start: tuple[float, float], end: tuple[float, float], node: Node) -> str:
    (x, y), (u, v) = start, end
    middle = (x + u) / 2
    way = f"M{x:.1f} {y:.1f}C{middle:.1f} {y:.1f} {middle:.1f} {v:.1f} {u:.1f} {v:.1f}"
    return f'<path d="{way}" fill="none" stroke="{_colour(node.value)}" stroke-width="2"/>'


def _dot(place: tuple[float, float], node: Node, inner: bool) -> str:
    x, y = place
    where = f'x="{x:.1f}" y="{y - RADIUS - 3:.1f}" text-anchor="middle"'
    if not inner:
        where = f'x="{x + RADIUS + 6:.1f}" y="{y + 4:.1f}"'
    ring = "" if node.right is None else 'stroke="currentColor" stroke-width="2"'
    ring += ' stroke-dasharray="2 2"' if node.right is False else ""
    fill = "none" if node.value is None else _colour(node.value)
    ring = ring or ('stroke="currentColor" stroke-dasharray="1 2"' if node.value is None else "")
    label = f"<text {where}>{escape(node.label)}</text>" if node.label else ""
    circle = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS}" fill="{fill}" {ring}/>'
    return f"<g><title>{escape(node.name)}</title>{circle}{label}</g>"


def _colour(value: float | None) -> str:
    if value is None or value != value:
        return "rgb({},{},{})".format(*MIDDLE)
    share = min(max(value, 0.0), 1.0) * 2
    first, second = (LOW, MIDDLE) if share < 1 else (MIDDLE, HIGH)
    mixed = (round(a + (b - a) * (share % 1 if share < 2 else 1)) for a, b in zip(first, second, strict=True))
    return "rgb({},{},{})".format(*mixed)
