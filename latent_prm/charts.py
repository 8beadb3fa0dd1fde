"""Figures as plotly takes them, plain dicts, each with its numbers as a table: hides plotly's words.

Colours are names of the page's own (report.css), which has them for light and for dark: Okabe and Ito's, as in `plots`.
Every line has a dash or marker of its own too. Shares stay shares (0..1): the axis shows them in per cent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal, NamedTuple

from latent_prm.metrics import Interval
from latent_prm.sheet import Chart, Table

COLOURS = ("--blue", "--orange", "--green", "--red", "--purple", "--sky", "--ink")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
MARKERS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "x", "pentagon", "star", "hexagon", "cross")
ROW = 48
"""Letters of names that stand side by side below bars. Plotly itself turns them only where they overlap, not touch."""

Value = float | None


class Look(NamedTuple):
    """Of a line."""

    colour: str
    dash: str = "solid"
    marker: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Points, joined; with an interval around each where ``low`` and ``high`` are given."""

    label: str
    x: Sequence[float]
    y: Sequence[Value]
    look: Look
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    sizes: Sequence[float] | None = None
    """Of the markers, in pixels."""
    apart: bool = False
    """Points only, each with its interval as a bar."""
    notes: Sequence[str] | None = None
    """Beside each point's numbers."""

    @classmethod
    def of(cls, label: str, x: Sequence[float], intervals: Sequence[Interval], look: Look, **more: Any) -> Line:
        """Through means, with their intervals."""
        each = {name: [getattr(one, of) for one in intervals] for name, of in _ENDS.items()}
        return cls(label=label, x=x, look=look, **each, **more)


_ENDS = {"y": "mean", "low": "low", "high": "high"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A direction of a chart."""

    title: str
    shows: Literal["share", "area", "number", "small"] = "number"
    log: bool = False
    ticks: Sequence[float] | None = None
    range: tuple[float, float] | None = None
    names: Sequence[str] = field(default_factory=tuple)

    def layout(self) -> dict[str, Any]:
        """As plotly has it."""
        found: dict[str, Any] = {"title": {"text": text(self.title)}, "tickformat": _FORMATS[self.shows]}
        if self.log:
            found["type"] = "log"
        if self.ticks is not None:
            shown = self.names or [f"{tick:,g}" for tick in self.ticks]
            found |= {"tickvals": list(self.ticks), "ticktext": [text(name) for name in shown]}
        if self.range is not None:
            found["range"] = list(self.range)
        return found

    def written(self, value: float | None) -> str:
        """A value in the table of numbers."""
        if value is None:
            return "–"
        if self.shows == "share":
            return f"{100 * value:.1f} %"
        return f"{value:.3f}" if self.shows == "area" else f"{value:,.6g}"


_FORMATS = {"share": ".0%", "area": "", "number": "", "small": ".1e"}
_HOVERS = {"share": ":.1%", "area": ":.3f", "number": ":.5~g", "small": ":.2e"}


def chart(
    title: str, lines: Sequence[Line], x: Axis, y: Axis, said: str = "", at: Mapping[str, float] | None = None
) -> Chart:
    """Lines over each other. ``at``: by what is said there, values of y at which a thin line stands."""
    traces = [trace for line in lines for trace in _traces(line, x, y)]
    shapes = [
        {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value,
         "line": {"color": "--muted", "dash": "dot", "width": 1}}
        for value in (at or {}).values()
    ]  # fmt: skip
    notes = [
        {"xref": "paper", "x": 1, "y": value, "xanchor": "right", "yanchor": "bottom", "showarrow": False,
         "text": text(name), "font": {"size": 11, "color": "--muted"}}
        for name, value in (at or {}).items()
    ]  # fmt: skip
    layout = {"xaxis": x.layout(), "yaxis": y.layout(), "shapes": shapes, "annotations": notes}
    layout["showlegend"] = len(lines) > 1
    return Chart(title, {"data": traces, "layout": layout}, _numbers(title, lines, x, y), said)


def _traces(line: Line, x: Axis, y: Axis) -> list[dict[str, Any]]:
    colour, dash, marker = line.look
    hover = f"%{{y{_HOVERS[y.shows]}}}"
    if line.low is not None and line.high is not None:
        ends = [f" [{y.written(low)}, {y.written(high)}]" for low, high in zip(line.low, line.high, strict=True)]
    else:
        ends = [""] * len(line.x)
    beside = [text(f"{end} {note}") for end, note in zip(ends, line.notes or [""] * len(line.x), strict=True)]
    own: dict[str, Any] = {
        "type": "scatter",
        "name": text(line.label),
        "legendgroup": text(line.label),
        "x": list(line.x),
        "y": list(line.y),
        "mode": "markers" if line.apart else "lines+markers" if marker or len(line.x) == 1 else "lines",
        "line": {"color": colour, "dash": dash, "width": 2},
        "marker": {"color": colour, "symbol": marker or "circle", "size": list(line.sizes) if line.sizes else 6},
        "text": beside,
        "hovertemplate": f"{hover}%{{text}}<extra>{text(line.label)}</extra>",
    }
    if line.low is None or line.high is None:
        return [own]
    if line.apart:
        up = [high - (mean or 0) for high, mean in zip(line.high, line.y, strict=True)]
        down = [(mean or 0) - low for low, mean in zip(line.low, line.y, strict=True)]
        own["error_y"] = {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "width": 0,
                          "thickness": 1.2, "color": f"{colour}/0.5"}  # fmt: skip
        own["marker"]["size"] = 10
        return [own]
    band = {
        "type": "scatter",
        "x": [*line.x, *reversed(line.x)],
        "y": [*line.high, *reversed(line.low)],
        "fill": "toself",
        "fillcolor": f"{colour}/0.13",
        "line": {"width": 0},
        "mode": "lines",
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": text(line.label),
    }
    return [band, own]


def _numbers(title: str, lines: Sequence[Line], x: Axis, y: Axis) -> Table:
    bounds = any(line.low is not None for line in lines)
    rows = []
    for line in lines:
        for i, (place, value) in enumerate(zip(line.x, line.y, strict=True)):
            ends = [y.written(side[i]) if side is not None else "" for side in (line.low, line.high)] if bounds else []
            rows.append([line.label, x.written(place), y.written(value), *ends])
    return Table("", ["", x.title, y.title, *(["from (95 %)", "to"] if bounds else [])], rows)


def bars(
    title: str,
    names: Sequence[str],
    groups: Mapping[str, Sequence[Value]],
    x: str,
    y: Axis,
    stacked: bool = False,
    said: str = "",
) -> Chart:
    """Bars by name: of each of ``groups`` one, side by side or on top of each other."""
    patterns = ("", "/", "x", ".", "\\")
    traces = [
        {
            "type": "bar",
            "name": text(label),
            "x": [text(name) for name in names],
            "y": list(values),
            "marker": {"color": COLOURS[i % len(COLOURS)], "pattern": {"shape": patterns[i % len(patterns)],
                       "fillmode": "overlay", "fgcolor": "--paper", "solidity": 0.2}},
            "hovertemplate": f"%{{x}}: %{{y{_HOVERS[y.shows]}}}<extra>{text(label)}</extra>",
        }
        for i, (label, values) in enumerate(groups.items())
    ]  # fmt: skip
    along: dict[str, Any] = {"title": {"text": text(x)}, "type": "category"}
    if sum(map(len, names)) > ROW:
        along["tickangle"] = -40
    layout = {"barmode": "stack" if stacked else "group", "xaxis": along}
    layout |= {"yaxis": y.layout(), "showlegend": len(groups) > 1, "bargap": 0.25, "hovermode": "closest"}
    rows = [[name, *(y.written(values[i]) for values in groups.values())] for i, name in enumerate(names)]
    return Chart(title, {"data": traces, "layout": layout}, Table("", [x, *groups], rows), said)


def dots(title: str, intervals: Mapping[str, Interval], x: Axis, said: str = "") -> Chart:
    """A row per name: a mean and its 95 % interval, against zero."""
    names = list(intervals)
    values = list(intervals.values())
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [one.mean for one in values],
        "y": [text(name) for name in names],
        "marker": {"color": ["--blue" if one.low > 0 else "--red" if one.high < 0 else "--muted" for one in values],
                   "size": 9, "symbol": ["circle" if one.low > 0 else "x" if one.high < 0 else "circle-open"
                                         for one in values]},
        "error_x": {"type": "data", "symmetric": False, "array": [one.high - one.mean for one in values],
                    "arrayminus": [one.mean - one.low for one in values], "width": 0, "thickness": 1.5,
                    "color": "--muted"},
        "text": [f"[{x.written(one.low)}, {x.written(one.high)}]" for one in values],
        "hovertemplate": f"%{{x{_HOVERS[x.shows]}}} %{{text}}<extra>%{{y}}</extra>",
    }  # fmt: skip
    layout = {"xaxis": x.layout() | {"zeroline": True, "zerolinecolor": "--ink"}, "showlegend": False}
    layout |= {"yaxis": {"type": "category", "autorange": "reversed", "automargin": True}, "hovermode": "closest"}
    rows = [[name, *map(x.written, (one.mean, one.low, one.high))] for name, one in intervals.items()]
    numbers = Table("", ["", x.title, "from (95 %)", "to"], rows)
    height = 160 + 26 * len(names)
    return Chart(title, {"data": [trace], "layout": layout | {"height": height}}, numbers, said)


def text(said: str) -> str:
    """A text where plotly would obey markup."""
    return escape(said, quote=False)
