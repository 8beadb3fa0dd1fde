"""How the hub is reached: hides how long it may be silent, what is asked for again, and what it is of no use to repeat.

huggingface_hub goes on with a download where it was cut off, and asks again for what it looks up. But some questions of
it wait forever, and a server that is overloaded when a file is fetched ends it at once: only that is mended here.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, TypeVar

SILENCE = 30
"""Seconds without a byte after which a transfer is broken off; HF_HUB_DOWNLOAD_TIMEOUT says otherwise."""
WAITS = (2.0, 4.0, 8.0)
"""Seconds before a question is asked again."""
_BUSY = (408, 429, 500, 502, 503, 504)
_FLEETING = {"TimeoutException", "NetworkError", "RemoteProtocolError", "ConnectionError", "TimeoutError"}
_FLEETING |= {"ServerDisconnectedError", "ClientPayloadError"}
"""Names of errors, of the several libraries that the hub is asked with, after which the next try may do."""
_FINAL = {"OfflineModeIsEnabled", "EntryNotFoundError", "RepositoryNotFoundError", "RevisionNotFoundError"}
"""And of those after which none will. What was looked up in vain (an entry not found here either) was tried again."""

log = logging.getLogger(__name__)
_T = TypeVar("_T")


def patiently(ask: Callable[[], _T], what: str) -> _T:
    """What ``ask`` returns. Where the hub, or the way to it, only stumbles, it is asked again, up to three times.

    Each time is said in the log. Raises what ``ask`` does: at once, where it is of no use to repeat it.
    """
    _limit()
    logging.getLogger("huggingface_hub").propagate = False  # it prints by itself: each line would come twice
    for wait in WAITS:
        try:
            return ask()
        except Exception as error:
            if not fleeting(error):
                raise
            said = (str(error).splitlines() or [""])[0] or type(error).__name__
            log.warning("%s: %s. Asking again in %g s.", what, said.rstrip("."), wait)
        time.sleep(wait)
    return ask()


def fleeting(error: BaseException) -> bool:
    """Whether the next try may do: a timeout, a connection that broke, a server that is overloaded."""
    found = list(causes(error))
    if any(kind.__name__ in _FINAL for each in found for kind in type(each).__mro__):
        return False
    if any("OfflineModeIsEnabled" in str(each) for each in found):  # datasets says it in words only
        return False
    if any(getattr(getattr(each, "response", None), "status_code", None) in _BUSY for each in found):
        return True
    return any(kind.__name__ in _FLEETING for each in found for kind in type(each).__mro__)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


@cache
def _limit() -> None:
    """From here on no question to the hub waits forever, nor longer than its user has set."""
    try:
        from huggingface_hub import constants, get_session, set_client_factory
    except ImportError:  # what is asked for needs it, and says so
        return
    if "HF_HUB_DOWNLOAD_TIMEOUT" not in os.environ:
        constants.HF_HUB_DOWNLOAD_TIMEOUT = SILENCE
    session: Any = get_session()
    hooks, settings = session.event_hooks, {"follow_redirects": session.follow_redirects, "timeout": session.timeout}
    settings |= {"headers": session.headers, "trust_env": session.trust_env}

    def bounded(request: Any) -> None:
        most = max(constants.HF_HUB_DOWNLOAD_TIMEOUT, constants.HF_HUB_ETAG_TIMEOUT)
        asked = request.extensions.get("timeout") or {}
        limits = {kind: asked.get(kind) or most for kind in ("connect", "read", "write", "pool")}
        request.extensions["timeout"] = {kind: min(limit, most) for kind, limit in limits.items()}

    hooks = {**hooks, "request": [*hooks["request"], bounded]}
    set_client_factory(lambda: type(session)(event_hooks=hooks, **settings))
