"""STAGE 4: a checkpoint behind HTTP. Scores paths, answers questions, and shows a page on which a tree grows.

latent-prm serve --port 8000

This room hides how the server is started, where its token comes from, and what it says when it begins.
"""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import socket
from importlib.util import find_spec
from typing import TYPE_CHECKING

from latent_prm import preflight, solver
from latent_prm.model import QwenLatentPRM
from latent_prm.options import ServeOptions
from latent_prm.pretrained import pick_device
from latent_prm.reasoner import Reasoner

if TYPE_CHECKING:
    import uvicorn

TOKEN = "LATENT_PRM_TOKEN"
"""The environment variable with the token; an option would be seen by everybody who lists processes."""
LEAST = 16
"""Characters of a token that somebody chose."""
NEEDS = ("fastapi", "uvicorn", "prometheus_client")


def main(options: ServeOptions) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Raises ValueError when the extra [serve] is missing, the PRM cannot read the reasoner's latents, the address is not
    to be had, and for a token that is too short.
    """
    token, own = find_token()
    check_extra()
    with listen(options.host, options.port) as listener:
        server = make_server(options, token)
        port = listener.getsockname()[1]
        for line in greeting(options, port, token if own else None):
            print(line, flush=True)
        server.run(sockets=[listener])


def check_extra() -> None:
    """Raises ValueError when what serving needs is not installed."""
    if missing := [name for name in NEEDS if find_spec(name) is None]:
        names = ", ".join(missing).replace("_", "-")
        raise ValueError(f'latent-prm serve needs {names}. Type: pip install "latent-prm[serve]"')


def find_token() -> tuple[str, bool]:
    """The token, and whether it was made here: nobody else knows it then.

    Raises ValueError for one that is short, or that no header could hold.
    """
    token = os.environ.get(TOKEN)
    if token is None:
        return secrets.token_urlsafe(32), True
    if not re.fullmatch(r"[!-~]+", token) or len(token) < LEAST:
        raise ValueError(
            f"{TOKEN} has {len(token)} characters: it takes {LEAST} or more, letters, digits and signs without spaces. "
            f"Type: export {TOKEN}=$(openssl rand -hex 32), or unset it for a random one."
        )
    return token, False


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises ValueError when it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ValueError(f"--host is {host!r}, which is no address ({error.strerror}). Type 127.0.0.1, say.") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        way_out = f"Type another --port (0: any that is free), or another --host than {host}."
        raise ValueError(f"--port {port} cannot be listened at ({error.strerror}). {way_out}") from error
    return listener


def greeting(options: ServeOptions, port: int, token: str | None) -> list[str]:
    """What is said at the start: where, the token if nobody else knows it, and whether others can come."""
    host = f"[{options.host}]" if ":" in options.host else options.host
    address = f"http://{host}:{port}"
    fragment = f"#token={token}" if token else f"#token=${TOKEN}"
    lines = [f"Serving {options.checkpoint} at {address}", f"The page:  {address}/{fragment}", "Stop it with Ctrl-C."]
    if not _is_loopback(options.host):
        lines.insert(
            1,
            f"⚠ WARNING: --host {options.host} is open to the network, without encryption: whoever reads along learns "
            "the token. Put a server with TLS in front, or type --host 127.0.0.1.",
        )
    return lines


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def make_server(options: ServeOptions, token: str) -> uvicorn.Server:
    """What answers; ``run(sockets=[listener])`` begins it. Raises ValueError as `main`."""
    import uvicorn

    from latent_prm.api import Service
    from latent_prm.patience import patient

    confidence = solver.load_confidence(options.asks("?"))
    if options.solve:
        preflight.check_reasoner(options.model_path, options.revision, options.checkpoint)
        reasoner = Reasoner.from_pretrained(**options.reasoner())
        model = solver.load_prm(options.asks("?"), reasoner)
        confidence = solver.believed(options.asks("?"), confidence, model, reasoner)
    else:
        reasoner, model = None, QwenLatentPRM.from_pretrained(options.checkpoint, device=pick_device(options.device))
    app = Service(options, model, confidence, reasoner).app(token)
    config = uvicorn.Config(
        app,
        http=patient(),
        ws="none",
        lifespan="on",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)
