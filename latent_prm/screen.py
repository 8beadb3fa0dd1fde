"""What a stage shows on: hides what is done otherwise where it goes into a file or pipe, which nobody watches.

There are no edges there that tables must fold at, and a bar that is drawn over itself all the time would be most of it.
"""

from __future__ import annotations

import sys
from time import time
from typing import Any

from rich.console import Console
from tqdm import tqdm

WIDE = 120
"""Letters of a line where there is no edge."""
SELDOM = 30.0
"""Seconds between two frames of a bar that nobody watches."""


def console(**settings: Any) -> Console:
    """For tables and sentences, which are shown as they are."""
    found = Console(highlight=False, markup=False, **settings)
    if not found.is_terminal:
        found.width = max(found.width, WIDE)
    return found


def watched() -> bool:
    """Whether what is drawn over itself is seen: stderr is a terminal."""
    return sys.stderr.isatty()


def bar(*items: Any, **settings: Any) -> tqdm[Any]:
    """A progress bar of tqdm, with its settings; not watched it says where it is as lines, first, last and seldom."""
    if watched():
        return tqdm(*items, **settings)
    return _Lines(*items, **settings, mininterval=SELDOM, maxinterval=SELDOM)


class _Lines(tqdm):
    def refresh(self, *given: Any, **named: Any) -> Any:
        """Asked for by every log line and every word beside the bar, too."""
        if time() - getattr(self, "last_print_t", 0.0) >= self.mininterval:
            return super().refresh(*given, **named)

    def clear(self, *_: Any, **__: Any) -> None:
        """A line stays."""

    @staticmethod
    def status_printer(file: Any) -> Any:
        """How a frame is written."""
        return lambda frame: print(frame, file=file, flush=True) if frame else None
