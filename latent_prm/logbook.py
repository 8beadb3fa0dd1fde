"""Where a run's log lines go: hides the handlers, on the terminal beside a progress bar and in the run's own file."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

log = logging.getLogger(__name__)


class Terminal(logging.Handler):
    """Log lines above the progress bar: warnings on stderr, the rest on stdout."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        tqdm.write(self.format(record), file=stream)
        stream.flush()  # into a pipe too


class LogFile(logging.FileHandler):
    """A file of log lines. Where the disk refuses one, that is said once: what is logged must not end a run, nor hide
    what does."""

    refused = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Say it on stderr."""
        if not self.refused:
            tqdm.write(f"{self.baseFilename}: {sys.exc_info()[1]}: it lacks lines from here on.", file=sys.stderr)
        self.refused = True

    def close(self) -> None:
        """As far as the disk lets it."""
        with suppress(OSError):
            super().close()


@contextmanager
def log_lines(path: Path, level: str) -> Iterator[None]:
    """The whole package's log lines go to the terminal and into a file; so does what ends the run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    package = logging.getLogger("latent_prm")
    handlers, before = (Terminal(), file := LogFile(path, encoding="utf-8")), package.level
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    package.setLevel(level)
    for handler in handlers:
        package.addHandler(handler)
    try:
        yield
    except Exception as error:  # on the terminal it is said by __main__
        file.handle(log.makeRecord(log.name, logging.ERROR, __file__, 0, str(error), (), None))
        raise
    finally:
        package.setLevel(before)
        for handler in handlers:
            package.removeHandler(handler)
            handler.close()
