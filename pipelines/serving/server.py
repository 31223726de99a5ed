"""One process that serves one model until it is stopped.

Its routes stand on FastAPI and uvicorn, as MLflow's scoring server does, and MLflow reads the requests of its protocol.
Ray Serve would bring processes, a proxy and a controller for what is one model on one machine, and MLflow's own server
scores each request by itself and keeps its model until it is restarted.
"""

from __future__ import annotations

import errno
import socket
import sys
from contextlib import closing, suppress
from pathlib import Path

import uvicorn

from cprfl.errors import ConfigError
from pipelines.serving.app import create_app, is_loopback
from pipelines.serving.champion import Champion, CheckpointSource, RegisteredSource, Source
from pipelines.serving.guard import Impatient
from pipelines.serving.limits import Limits
from pipelines.stages.model_names import find_model
from pipelines.tracking.models import SCHEME

_LOOK = 5.0  # seconds between two looks at what the model's name stands for
_BACKLOG = _CONNECTIONS = 1024
_TAKEN = (errno.EADDRINUSE, errno.EACCES)


def serve(model: str, output_dir: Path, host: str, port: int, limits: Limits) -> None:
    """Serve a model until the process is interrupted.

    Args:
        model: as `find_model` takes it.
        output_dir: where the experiments and the MLflow store are.
        host: address to listen on.
        port: likewise; 0 takes one that is free.
        limits: of requests.

    Raises:
        ConfigError: where the port is taken, or the address is none of this machine.
        CheckpointError: where there is no such model.
    """
    with closing(_listening(host, port)) as listening:  # better known before a model is loaded
        found = find_model(model, output_dir)
        source: Source = RegisteredSource(found) if found.startswith(SCHEME) else CheckpointSource(Path(found))
        champion = Champion(source)
        config = uvicorn.Config(
            create_app(champion, limits, host),
            http=Impatient,
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=_CONNECTIONS,
            timeout_graceful_shutdown=30,
        )
        ended = champion.keep_up(_LOOK)
        _say_where(champion, host, listening.getsockname()[1])
        with suppress(KeyboardInterrupt):  # which is how it ends
            uvicorn.Server(config).run(sockets=[listening])
        ended.set()
    print("stopped", file=sys.stderr)


def _listening(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=_BACKLOG
        )
    except OSError as error:
        mend = "--port takes another one" if error.errno in _TAKEN else "--host takes an address of this machine"
        raise ConfigError(f"{host}:{port}: {error.strerror or error}; {mend}") from None


def _say_where(champion: Champion, host: str, port: int) -> None:
    served = champion.served
    at = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    print(f"model    {served.name}, version {served.version[:12]}: {len(served.predictor.class_names)} classes")
    print(f"page     {at}/\nAPI      {at}/docs\nmetrics  {at}/metrics", flush=True)
    if not is_loopback(host):
        print(f"{host}: other machines may ask too; nobody is asked for a password", file=sys.stderr, flush=True)
