"""Is what lies in a folder what was written? ``latent-prm verify prm_data``, with ``--repair`` back to what is sound.

This room hides the table. What is known of files is in ``inventory``, what falls back on what in ``mending``.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from latent_prm import screen
from latent_prm.files import BadFile
from latent_prm.inventory import UNFINISHED, Folder, Verdict, at_work, judge, look
from latent_prm.memory import spell
from latent_prm.mending import repair
from latent_prm.options import VerifyOptions

FEW = 8
"""Parts of a kind, or files that are not ours, from which on they are counted instead of named."""


class Seen(NamedTuple):
    """A folder and what was found out about its parts."""

    folder: Folder
    verdicts: list[Verdict]
    busy: str | None
    """Who is at work in it or around it."""

    @property
    def damaged(self) -> list[Verdict]:
        """What is not sound; not what is being written."""
        return [verdict for verdict in self.verdicts if not verdict.sound]


def main(options: VerifyOptions) -> None:
    """Look and show; if wished repair, and look again.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: nothing in it is ours.
        BadFile: something is damaged, or still is; said after the table.
    """
    path, console = Path(options.path), screen.console(soft_wrap=True)
    seen = inspect(path)
    show(seen, path, console)
    if options.repair:
        wanting = {one.folder.path for one in seen if one.damaged or one.folder.torn}
        done = list(repair(seen[0].folder, wanting))
        for sentence in done or ["There was nothing to repair."]:
            console.print(sentence)
        seen = inspect(path) if done else seen
    damaged = [verdict for one in seen for verdict in one.damaged]
    if damaged:
        raise BadFile(_verdict(damaged, options, next((one.busy for one in seen if one.damaged and one.busy), None)))
    console.print("All is sound.")


def _verdict(damaged: Sequence[Verdict], options: VerifyOptions, busy: str | None) -> str:
    said = f"Damaged: {', '.join(verdict.part.path.name for verdict in damaged[:FEW])}"
    said += f" and {len(damaged) - FEW} more" * (len(damaged) > FEW)
    if options.repair:
        return f"Still d{said[1:]}. Why it was not repaired stands above."
    wait = f"Wait until the stage at work there is through (pid {busy}), then type" if busy else "Type"
    return f"{said}. {wait}: latent-prm verify {shlex.quote(options.path)} --repair"


# --- looking ----------------------------------------------------------------------------------------------------------


def inspect(path: Path) -> list[Seen]:
    """What is in a folder and all folders of ours in it, read and judged; with a bar where that takes long.

    Raises as `main`.
    """
    if not path.is_dir():
        what = f"a file. Type its folder: latent-prm verify {shlex.quote(str(path.parent))}"
        raise FileNotFoundError(f"{path} is {what}" if path.exists() else f"There is no folder {path}.")
    root = look(path)
    if root is None:
        raise ValueError(f"Nothing in {path} is of this program. Type a folder as prm_data, checkpoints or reports.")
    seen, busy = [], dict[Path, str]()
    bytes_there = sum(part.size for folder in root.walk() for part in folder.parts)
    with screen.bar(total=bytes_there, desc="Verifying", unit="B", unit_scale=True, delay=2, leave=False) as bar:
        for folder in root.walk():
            above = next((busy[one] for one in folder.path.parents if one in busy), None)
            if who := at_work(folder.path) or above:
                busy[folder.path] = who
            verdicts = []
            for part in folder.parts:
                verdict = judge(part)
                if not (who and _in_hand(verdict)):
                    verdicts.append(verdict)
                bar.update(part.size)
            seen.append(Seen(folder, verdicts, who))
    return seen


def _in_hand(verdict: Verdict) -> bool:
    """Whether something is not sound only because a stage is writing or removing it at this moment."""
    part = verdict.part
    return not verdict.sound and (part.what == UNFINISHED or not part.path.exists() or judge(part).sound)


def show(seen: Sequence[Seen], root: Path, console: Console) -> None:
    """Print a row for what there is, and a sentence for what is wrong with it."""
    table = Table(box=box.SIMPLE, padding=(0, 1), title=Text(str(root)))
    for name in ("", "what", "state", ""):
        table.add_column(name, overflow="fold")
    rows: dict[Path, list[tuple[str, str, str, str]]] = {}
    for folder, verdicts, busy in seen:
        home = folder.path
        if folder.kind == "checkpoint" and home.parent in rows:  # it is a part of its run
            home = home.parent
        else:
            name = "" if home == root else str(home.relative_to(root))
            rows[home] = [(name, folder.kind, f"at work: pid {busy}" if busy else "", "")]
        rows[home] += _rows(folder, verdicts, home, bool(busy))
    for row in (row for group in rows.values() for row in group):
        table.add_row(*map(Text, row))
    console.print(table)
    for verdict in (verdict for one in seen for verdict in one.damaged):
        console.print(f"Damaged: {verdict.said}", style="yellow")


def _rows(folder: Folder, verdicts: Sequence[Verdict], home: Path, busy: bool) -> Iterator[tuple[str, str, str, str]]:
    by_kind: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        by_kind.setdefault(verdict.part.what if verdict.sound else "", []).append(verdict)
    for what, found in by_kind.items():
        if what and len(found) > FEW:
            size = sum(verdict.part.size for verdict in found)
            yield f"  {len(found)} of them", what, "sound", spell(size)
            continue
        for part, sound, said in found:
            state = ("sound" if part.check else "unchecked") if sound else "DAMAGED"
            yield f"  {part.path.relative_to(home)}", part.what, state, said if sound and part.check else ""
    for state, paths in (
        ("being written" if busy else "left by a killed write", folder.torn),
        ("set aside by a repair", folder.aside),
        ("not ours, left alone", folder.others),
    ):
        yield from ((f"  {path.relative_to(home)}", "", state, "") for path in paths[:FEW])
        if more := paths[FEW:]:
            yield f"  and {len(more)} more", "", state, ""
