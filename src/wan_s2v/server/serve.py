"""`wan-s2v serve`: everything is checked, then the server runs until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import uvicorn

from wan_s2v.server.app import create_app
from wan_s2v.server.limits import Limits
from wan_s2v.server.service import Service, Settings
from wan_s2v.server.supervisor import probe
from wan_s2v.server.tokens import read_tokens, require_tokens

_CONNECTIONS: Final = 500
_LAST_WORDS_S: Final = 5  # for answers that are being sent when the server is told to stop


def serve(
    choice: Mapping[str, Any], options: Mapping[str, Any], limits: Limits, network: Mapping[str, Any], folder: Path
) -> None:
    """Serve until SIGTERM or SIGINT; running jobs are then left after their step and wait for the next start.

    Args:
        choice, options: fields of `ModelChoice`, and of `GenerationOptions` for the whole run.
        network: "host", "port", "tokens", "allow_urls" and "workers".
    Raises: UsageError, CheckpointError and OutputError for what would not work later.
    """
    tokens = read_tokens(network["tokens"], os.environ)
    require_tokens(network["host"], tokens)
    facts = asyncio.run(probe(choice, options))
    settings = Settings(folder, tokens, network["workers"], network["allow_urls"], limits)
    run(Service(settings, facts), network["host"], network["port"])


def run(service: Service, host: str, port: int) -> None:
    """Answer requests until the process is told to stop."""
    app = create_app(service, is_stopping=lambda: server.should_exit)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=_LAST_WORDS_S,
    )
    server = uvicorn.Server(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # uvicorn repeats the signal once all is done; that is no failure
    print(f"wan_s2v serves {service.facts['name']} on http://{host}:{port}", file=sys.stderr, flush=True)
    server.run()
