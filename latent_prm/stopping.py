"""Being stopped: Ctrl-C and SIGTERM end a stage in order, and never in the middle of what must not be disturbed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NoReturn


def ending_on_sigterm() -> AbstractContextManager[None]:
    """Inside, SIGTERM raises SystemExit(143), so that what is held can be written on the way out."""
    return _handling({signal.SIGTERM: _end})


def _end(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


@contextmanager
def gathered() -> Iterator[list[signal.Signals]]:
    """A list that fills with every Ctrl-C and SIGTERM, to be looked at between steps instead of breaking one off."""
    came: list[signal.Signals] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    heeded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]  # nohup stays nohup
    with _handling(dict.fromkeys(heeded, lambda number, frame: came.append(signal.Signals(number)))):
        yield came


@contextmanager
def undisturbed() -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM wait; after it the first of them is taken up."""
    waiting: list[int] = []
    with _handling(dict.fromkeys((signal.SIGINT, signal.SIGTERM), lambda number, frame: waiting.append(number))):
        yield
    if waiting:
        signal.raise_signal(waiting[0])


@contextmanager
def _handling(handlers: dict[signal.Signals, Callable[[int, Any], Any]]) -> Iterator[None]:
    """Inside, these handle the signals. Only the main thread may set handlers: in another one nothing changes."""
    main_thread = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number, handler in handlers.items() if main_thread}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
