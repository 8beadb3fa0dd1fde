"""Parts of a report → one HTML file that opens offline: hides markup, escaping, and what a browser is allowed to do.

Whatever is said may come from elsewhere: it is escaped where it is set, data travel as JSON that no markup can end, and
the file's own policy runs only the scripts whose sha256 it names, with nothing to be fetched from anywhere.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files as package_files
from typing import Any

SHARED = ("tree.css", "report.css"), ("tree.js", "report.js")


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text, the first column of which names them. A row that has nothing but a name heads those after it."""

    title: str
    columns: Sequence[str]
    """Their heads; of none all stand without."""
    rows: Sequence[Sequence[str]]
    words: bool = False
    """The cells are to be read, not to be compared."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture to touch, and the same in words and numbers."""

    title: str
    figure: Mapping[str, Any]
    """plotly's data and layout. A text "--name" or "--name/0.2" stands for a colour of the page, with an opacity."""
    numbers: Table
    said: str = ""


@dataclass(frozen=True, slots=True)
class Words:
    """Paragraphs."""

    lines: Sequence[str]


@dataclass(frozen=True, slots=True)
class Typed:
    """What was typed."""

    line: str


@dataclass(frozen=True, slots=True)
class Tiles:
    """Figures that everybody wants to see first: name, figure, and what to know beside it."""

    figures: Sequence[tuple[str, str, str]]


@dataclass(frozen=True, slots=True)
class Fold:
    """What only some want."""

    title: str
    parts: Sequence[Part]


@dataclass(frozen=True, slots=True)
class Tabs:
    """Alike parts of several things, one of which is shown."""

    label: str
    panels: Mapping[str, Sequence[Part]]


@dataclass(frozen=True, slots=True)
class Explorer:
    """Trees to walk through; what report.js takes."""

    data: Mapping[str, Any]


Part = Table | Chart | Words | Typed | Tiles | Fold | Tabs | Explorer


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the report that can be gone to."""

    name: str
    title: str
    parts: Sequence[Part]


def page(title: str, subtitle: str, sections: Sequence[Section], plotly: str) -> str:
    """The whole file. ``plotly`` is the library's source."""
    writer = _Writer()
    body = "".join(writer.section(section) for section in sections)
    styles, own = (["".join(_packaged(name) for name in names)] for names in SHARED)
    scripts = [plotly, *own] if writer.charts else own
    data = {"charts": writer.charts, "trees": writer.trees}
    links = "".join(f'<a href="#{escape(one.name)}">{escape(one.title)}</a>' for one in sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(scripts)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{escape(title)}</title>\n<style>{styles[0]}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#content">Skip to the content</a>\n'
        f'<header><p class="brand">latent-prm report</p><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>\n'
        f'<nav aria-label="Sections">{links}</nav>\n'
        f'<main id="content">\n<noscript><p class="words">Pictures and trees need JavaScript; the tables do not.</p>'
        f"</noscript>\n{body}</main>\n"
        f'<script type="application/json" id="everything">{embedded(data)}</script>\n'
        + "".join(f"<script>{script}</script>\n" for script in scripts)
        + "</body>\n</html>\n"
    )


def embedded(data: Any) -> str:
    """JSON that may stand within a <script>, whatever texts it holds."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text.encode("utf-8", "replace").decode()  # half a surrogate pair is no letter


def _policy(scripts: Sequence[str]) -> str:
    """Plotly sets styles of its own, and makes pictures as data."""
    sums = (b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{one}'" for one in sums)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _packaged(name: str) -> str:
    return (package_files("latent_prm") / "page" / name).read_text("utf-8").replace("\r\n", "\n")


@dataclass(slots=True)
class _Writer:
    """Markup, and the data that it asks for."""

    charts: list[Mapping[str, Any]] = field(default_factory=list)
    trees: Mapping[str, Any] | None = None
    groups: int = 0

    def section(self, section: Section) -> str:
        name = escape(section.name)
        inside = "".join(self.parts(section.parts))
        return f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{escape(section.title)}</h2>\n{inside}</section>\n'  # noqa: E501

    def parts(self, parts: Sequence[Part]) -> Iterator[str]:
        """Charts that follow each other stand side by side."""
        for i, part in enumerate(parts):
            chart = isinstance(part, Chart)
            if chart and not (i and isinstance(parts[i - 1], Chart)):
                yield '<div class="charts">'
            yield self.part(part)
            if chart and not (i + 1 < len(parts) and isinstance(parts[i + 1], Chart)):
                yield "</div>\n"

    def part(self, part: Part) -> str:
        match part:
            case Table():
                return _table(part)
            case Chart():
                return self.chart(part)
            case Words():
                return "".join(f'<p class="words">{escape(line)}</p>\n' for line in part.lines)
            case Typed():
                words = part.line.replace(" --", "\n--").split("\n")  # an option and its value stay in one line
                spans = " ".join(f"<span>{escape(word)}</span>" for word in words)
                return f'<pre class="typed"><code>{spans}</code></pre>\n'
            case Tiles():
                each = (
                    f"<div><dt>{escape(name)}</dt><dd>{escape(figure)}<small>{escape(beside)}</small></dd></div>"
                    for name, figure, beside in part.figures
                )
                return f'<dl class="tiles">{"".join(each)}</dl>\n'
            case Fold():
                inside = "".join(self.parts(part.parts))
                return f"<details><summary>{escape(part.title)}</summary>\n{inside}</details>\n"
            case Tabs():
                return self.tabs(part)
            case Explorer():
                self.trees = part.data
                return _EXPLORER if part.data["valued"] else _EXPLORER.replace(_VALUES, "")

    def chart(self, part: Chart) -> str:
        self.charts.append(part.figure)
        said = f'<p class="said">{escape(part.said)}</p>' if part.said else ""
        return (
            f'<figure class="chart"><figcaption>{escape(part.title)}</figcaption>'
            f'<div class="plot" data-chart="{len(self.charts) - 1}" role="img" '
            f'aria-label="{escape(part.title)}. The numbers stand below."></div>{said}'
            f"<details><summary>The numbers</summary>{_table(part.numbers)}</details></figure>\n"
        )

    def tabs(self, part: Tabs) -> str:
        """Without JavaScript all panels are shown, each under its name."""
        self.groups += 1
        if len(part.panels) == 1:
            return "".join(self.parts(next(iter(part.panels.values()))))
        buttons, panels = [], []
        for i, (name, parts) in enumerate(part.panels.items()):
            tab, panel = (f"tab-{self.groups}-{i}-{kind}" for kind in ("tab", "panel"))
            state = f'aria-controls="{panel}" aria-selected="{str(not i).lower()}" tabindex="{-bool(i)}"'
            buttons.append(f'<button type="button" role="tab" id="{tab}" {state}>{escape(name)}</button>')
            inside = "".join(self.parts(parts))
            panels.append(
                f'<div role="tabpanel" id="{panel}" aria-labelledby="{tab}"><h3>{escape(name)}</h3>{inside}</div>'
            )
        row = f'<div role="tablist" aria-label="{escape(part.label)}">{"".join(buttons)}</div>'
        return f'<div class="tabs">{row}{"".join(panels)}</div>\n'


def _table(table: Table) -> str:
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.columns)
    head = f"<thead><tr>{names}</tr></thead>" if table.columns else ""
    rows = []
    for first, *rest in table.rows:
        if rest and not any(rest):
            rows.append(f'<tr><th scope="rowgroup" colspan="{len(rest) + 1}">{escape(first)}</th></tr>')
            continue
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        rows.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    caption = f"<caption>{escape(table.title)}</caption>" if table.title else ""
    name, kind = escape(table.title or "Table"), "wide words" if table.words else "wide"
    return (
        f'<div class="{kind}" tabindex="0" role="region" aria-label="{name}"><table>{caption}{head}'
        f"<tbody>{''.join(rows)}</tbody></table></div>\n"
    )


_VALUES = """<h4>The value along each path</h4>
<div class="canvas"><svg id="values"></svg></div>
"""
_EXPLORER = f"""<div id="explorer">
<form class="filters" role="search" aria-label="Which questions">
<label>Show <select id="show"></select></label>
<label id="of-task">Task <select id="task"></select></label>
<label class="grow">Text <input id="text" type="search" placeholder="in question or answer" autocomplete="off"></label>
<label>Paths <select id="sorted"><option value="">as grown</option><option value="1">by value</option></select></label>
</form>
<p id="count" role="status"></p>
<div class="two">
<ul id="questions" role="listbox" aria-label="Questions" tabindex="0"></ul>
<div id="shown" hidden>
<div class="steps"><button type="button" id="before">← Before</button><span id="where"></span>
<button type="button" id="next">Next →</button></div>
<h3 id="question"></h3>
<dl id="facts" class="facts"></dl>
<div id="legend" class="legend"></div>
<div class="canvas" id="canvas"><svg id="tree"></svg></div>
<p id="picked" role="status"></p>
{_VALUES}<details id="as-table"><summary>This tree as a table</summary><div class="wide" tabindex="0" role="region"
aria-label="This tree as a table"><table id="rows"></table></div></details>
</div></div></div>
"""
