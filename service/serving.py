"""The processes of `keepgate serve`: one worker in this process, or several under a supervisor.

Signals are handled here and not by uvicorn, whose supervisor takes SIGHUP for
a restart: SIGHUP reloads the configuration in every worker, SIGTERM and SIGINT
stop with `server.drain` for what runs.
"""

import asyncio
import contextlib
import gc
import logging
import math
import multiprocessing
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import msgspec
import uvicorn

from models.errors import BackendError, ConfigError
from service.api.connection import Connection
from service.app import App
from service.settings import Settings, load
from service.wiring import Runtime, configure_logs

log = logging.getLogger("keepgate.serving")

_BACKLOG = 2048
_KEEP_ALIVE = 75
_RESTART_AFTER = 1.0
_STOP_GRACE = 10.0
_FAILED_TO_START = 1


class Launch(msgspec.Struct, frozen=True):
    """What a worker needs to begin; it reads the configuration itself, so that a restarted one has today's."""

    config: Path | None
    environ: dict[str, str]
    admin_token: str
    run_dir: Path | None = None
    parent: int | None = None


def serve(settings: Settings, *, config: Path | None, environ: Mapping[str, str]) -> int:
    """Serves until it is told to stop; the exit code. Raises `ConfigError` if the address cannot be bound."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload
    configure_logs(settings)
    listener = _bind(settings)
    given = settings.admin.token
    token = given.get_secret_value() if given is not None else secrets.token_urlsafe(24)
    announce(settings, listener, None if given is not None else token)
    launch = Launch(config=config, environ=dict(environ), admin_token=token)
    if settings.server.workers == 1:
        return _work(settings, launch, listener, slot=0)
    run_dir = Path(tempfile.mkdtemp(prefix="keepgate-"))
    try:
        launch = msgspec.structs.replace(launch, run_dir=run_dir, parent=os.getpid())
        return _Supervisor(settings, launch, listener).run()
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)


def announce(settings: Settings, listener: socket.socket, made_token: str | None) -> None:
    """What a person needs to know now, on stdout."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if settings.server.tls is not None else "http"
    base = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    lines = [f"Keepgate listens on {base} ({settings.server.workers} worker(s)); API page: {base}/docs"]
    if made_token is not None:
        lines.append(f"Admin token for this run (set admin.token to choose one): {made_token}")
    if any(upstream.provider == "demo" for upstream in settings.upstreams):
        lines += [
            "The upstream `demo` is built in: it is no language model and repeats the question. Try:",
            "",
            _curl(base, "How do I reset my password?"),
            _curl(base, "How can I reset my password?"),
            f"  curl -s {base}/metrics | grep keepgate_cache_lookups",
            "",
        ]
    print("\n".join(lines), flush=True)


def _curl(base: str, question: str) -> str:
    body = f'{{"model": "demo", "messages": [{{"role": "user", "content": "{question}"}}]}}'
    return f"  curl -si {base}/v1/chat/completions -d '{body}'"


def _bind(settings: Settings) -> socket.socket:
    host, port = settings.server.host, settings.server.port
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(f"server.port: {host}:{port} cannot be bound: {error.strerror}") from error


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _work(settings: Settings, launch: Launch, listener: socket.socket, *, slot: int) -> int:
    """One worker, from its parts to its end."""
    runtime = Runtime(
        settings,
        config=launch.config,
        environ=launch.environ,
        admin_token=launch.admin_token,
        run_dir=launch.run_dir,
        slot=slot,
    )
    tls = settings.server.tls
    server = _Server(
        uvicorn.Config(
            App(runtime),
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=math.ceil(settings.server.drain),
            ssl_certfile=tls.cert if tls is not None else None,
            ssl_keyfile=tls.key if tls is not None else None,
        )
    )
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        return runner.run(_served(server, runtime, listener, launch.parent))


async def _served(server: _Server, runtime: Runtime, listener: socket.socket, parent: int | None) -> int:
    def stop() -> None:
        server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        await runtime.start()
    except (BackendError, ConfigError, OSError) as error:
        print(f"keepgate: {error}", file=sys.stderr, flush=True)
        return _FAILED_TO_START
    loop.add_signal_handler(signal.SIGHUP, runtime.reload)
    orphaned = loop.create_task(_stop_without(parent, stop)) if parent is not None else None
    # What exists now lives as long as the worker: no use in looking through it at every collection.
    gc.collect()
    gc.freeze()
    try:
        await server.serve(sockets=[listener])
    finally:
        if orphaned is not None:
            orphaned.cancel()
        await runtime.close()
    return 0


async def _stop_without(parent: int, stop: Callable[[], None]) -> None:
    """A worker whose supervisor was killed has nobody to stop it later."""
    while os.getppid() == parent:  # noqa: ASYNC110  # nothing tells a process that it was orphaned
        await asyncio.sleep(1.0)
    log.warning("the supervisor is gone; this worker stops")
    stop()


def _begin(launch: Launch, listener: socket.socket, slot: int) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        settings = load(launch.config, launch.environ)
    except ConfigError as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(_FAILED_TO_START)
    configure_logs(settings)
    sys.exit(_work(settings, launch, listener, slot=slot))


class _Supervisor:
    """Starts the workers, passes signals on, and replaces a worker that died.

    A worker that could not start stops everything: its successor could not
    either.
    """

    def __init__(self, settings: Settings, launch: Launch, listener: socket.socket) -> None:
        self._drain = settings.server.drain
        self._launch = launch
        self._listener = listener
        self._processes = multiprocessing.get_context("spawn")
        self._workers: dict[int, SpawnProcess] = {}
        self._started: dict[int, float] = {}
        self._slots = range(settings.server.workers)
        self._stopping = False
        self._woken, self._wake = socket.socketpair()
        self._woken.setblocking(False)
        self._wake.setblocking(False)

    def run(self) -> int:
        signal.set_wakeup_fd(self._wake.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop())
        signal.signal(signal.SIGHUP, lambda *_: self._pass_on(signal.SIGHUP))
        for slot in self._slots:
            self._start(slot)
        exit_code = 0
        while self._workers and not self._stopping:
            self._sleep(None)
            for slot, worker in list(self._workers.items()):
                if worker.exitcode is None or self._stopping:
                    continue
                if worker.exitcode == _FAILED_TO_START:
                    exit_code = _FAILED_TO_START
                    self._stop()
                    break
                log.error("worker %d ended with %s; another takes its place", slot, worker.exitcode)
                # A worker that dies at once, again and again, must not take the machine with it.
                time.sleep(max(0.0, _RESTART_AFTER - (time.monotonic() - self._started[slot])))
                self._start(slot)
        self._join()
        return exit_code

    def _start(self, slot: int) -> None:
        worker = self._processes.Process(target=_begin, args=(self._launch, self._listener, slot), daemon=False)
        worker.start()
        self._workers[slot] = worker
        self._started[slot] = time.monotonic()

    def _sleep(self, timeout: float | None) -> None:
        wait([self._woken, *(worker.sentinel for worker in self._workers.values())], timeout)
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4096)

    def _stop(self) -> None:
        self._stopping = True
        # Open here, it would go on taking connections that no worker serves.
        self._listener.close()
        self._pass_on(signal.SIGTERM)

    def _pass_on(self, number: signal.Signals) -> None:
        for worker in self._workers.values():
            if worker.pid is not None and worker.is_alive():
                os.kill(worker.pid, number)

    def _join(self) -> None:
        deadline = time.monotonic() + self._drain + _STOP_GRACE
        for worker in self._workers.values():
            worker.join(max(0.0, deadline - time.monotonic()))
            if worker.is_alive():
                log.error("worker %s did not stop in time and is killed", worker.pid)
                worker.kill()
                worker.join()
