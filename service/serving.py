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
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import msgspec
import uvicorn

from models.errors import BackendError, ConfigError
from service.api import connection
from service.app import App
from service.settings import Settings
from service.wiring import Runtime, configure_logs, log_refused, reread

log = logging.getLogger("keepgate.serving")

_BACKLOG = 2048
_KEEP_ALIVE = 75
_RESTART_AFTER = 1.0
_STOP_GRACE = 10.0
_COLLECTING = (2_000, 10, 1_000)
_FAILED_TO_START = 1


class Launch(msgspec.Struct, frozen=True):
    """What a worker needs to begin.

    `settings` are those in effect, and not what the file may hold by now: a
    worker that takes a dead one's place serves as the others do.
    """

    settings: Settings
    config: Path | None
    environ: dict[str, str]
    admin_token: str
    run_dir: Path | None = None
    parent: int | None = None


def serve(settings: Settings, *, config: Path | None, environ: Mapping[str, str]) -> int:
    """Serves until it is told to stop; the exit code. Raises `ConfigError` if the address cannot be bound."""
    early: list[int] = []
    signal.signal(signal.SIGHUP, lambda number, _: early.append(number))
    configure_logs(settings)
    listener = _bind(settings)
    given = settings.admin.token
    token = given.get_secret_value() if given is not None else secrets.token_urlsafe(24)
    lines = _announcement(settings, listener, None if given is not None else token)

    def announce() -> None:
        print("\n".join(lines), flush=True)
        if early:  # before anybody could hear it
            os.kill(os.getpid(), signal.SIGHUP)

    launch = Launch(settings=settings, config=config, environ=dict(environ), admin_token=token)
    if settings.server.workers == 1:
        return _work(launch, listener, slot=0, started=announce)
    run_dir = Path(tempfile.mkdtemp(prefix="keepgate-"))
    try:
        launch = msgspec.structs.replace(launch, run_dir=run_dir, parent=os.getpid())
        return _Supervisor(launch, listener, announce).run()
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)


def _announcement(settings: Settings, listener: socket.socket, made_token: str | None) -> list[str]:
    """What a person needs to know once it serves."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if settings.server.tls is not None else "http"
    base = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    workers = settings.server.workers
    lines = [f"Keepgate listens on {base} ({workers} worker{'s' if workers > 1 else ''}); API page: {base}/docs"]
    if made_token is not None:
        lines.append(f"Admin token for this run (set admin.token to choose one): {made_token}")
    if _answers_to_demo(settings) and settings.server.tls is None:
        lines += [
            "The upstream `demo` is built in: it is no language model and repeats the question. Try:",
            "",
            _curl(base, "How do I reset my password?"),
            _curl(base, "How can I reset my password?"),
            f"  curl -s {base}/metrics | grep keepgate_cache_lookups",
            "",
        ]
    return lines


def _answers_to_demo(settings: Settings) -> bool:
    """Whether a request as `_curl` writes it, without a key, would be answered."""
    only = [upstream.provider for upstream in settings.upstreams] == ["demo"]
    return only and not settings.models and not settings.keys.require


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


def _work(launch: Launch, listener: socket.socket, *, slot: int, started: Callable[[], None]) -> int:
    """One worker, from its parts to its end. Calls `started` when it serves."""
    gc.disable()  # what is made until it serves stays, and looking through it takes a tenth of a second
    settings = launch.settings
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
            http=connection.Connection,
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
        return runner.run(_served(server, runtime, listener, launch, started))


async def _served(
    server: _Server, runtime: Runtime, listener: socket.socket, launch: Launch, started: Callable[[], None]
) -> int:
    parent, run_dir = launch.parent, launch.run_dir

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
    # Objects of requests die young. While a body of 10 MB is screened in a thread a full collection would walk over all
    # of it several times, and nobody else runs meanwhile: up to 0.4 s each.
    gc.set_threshold(*_COLLECTING)
    gc.enable()
    started()
    try:
        await server.serve(sockets=[listener])
    finally:
        if orphaned is not None:
            orphaned.cancel()
        await runtime.close()
        if run_dir is not None and os.getppid() != parent:
            shutil.rmtree(run_dir, ignore_errors=True)  # its owner was killed
    return 0


async def _stop_without(parent: int, stop: Callable[[], None]) -> None:
    """A worker whose supervisor was killed has nobody to stop it later."""
    while os.getppid() == parent:  # noqa: ASYNC110  # nothing tells a process that it was orphaned
        await asyncio.sleep(1.0)
    log.warning("the supervisor is gone; this worker stops")
    stop()


def _begin(launch: Launch, listener: socket.socket, slot: int, report: Connection) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    configure_logs(launch.settings)
    sys.exit(_work(launch, listener, slot=slot, started=lambda: report.send_bytes(b"serving")))


class _Supervisor:
    """Starts the workers, passes signals on, and replaces a worker that died.

    Workers that cannot start at all stop everything: others could not either.
    One that cannot take a dead one's place is tried again while the rest serve.
    """

    def __init__(self, launch: Launch, listener: socket.socket, announce: Callable[[], None]) -> None:
        self._launch = launch
        self._started_with = launch.settings
        self._listener = listener
        self._processes = multiprocessing.get_context("spawn")
        self._workers: dict[int, SpawnProcess] = {}
        self._begun: dict[int, float] = {}
        self._announce = announce
        self._reports: dict[Connection, int] = {}
        self._served: set[int] = set()  # slots that ever had a worker that served
        self._listening: set[int] = set()  # slots whose worker has said that it serves: before, a SIGHUP would end it
        self._given: dict[int, Launch] = {}
        self._announced = False
        self._stopping = False
        self._reloading = False
        self._woken, self._wake = socket.socketpair()
        self._woken.setblocking(False)
        self._wake.setblocking(False)

    def run(self) -> int:
        signal.set_wakeup_fd(self._wake.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop())
        signal.signal(signal.SIGHUP, lambda *_: self._reload_soon())
        slots = self._launch.settings.server.workers
        for slot in range(slots):
            self._start(slot)
        exit_code = 0
        while not self._stopping:
            self._wait()
            if self._reloading:
                self._reload()
            for slot, worker in list(self._workers.items()):
                if worker.exitcode is None or self._stopping:
                    continue
                if worker.exitcode > 0 and slot not in self._served:
                    exit_code = _FAILED_TO_START
                    self._stop()
                    break
                log.error("worker %d ended with %s; another takes its place", slot, worker.exitcode)
                # A worker that dies at once, again and again, must not take the machine with it.
                self._pause(self._begun[slot] + _RESTART_AFTER)
                if not self._stopping:
                    self._start(slot)
        self._join()
        return exit_code

    def _reload_soon(self) -> None:
        self._reloading = True

    def _reload(self) -> None:
        """Checks the file before any worker is told to read it, and remembers it for workers to come."""
        self._reloading = False
        try:
            settings = reread(self._launch.config, self._launch.environ, self._started_with)
        except ConfigError as error:
            log_refused(error)
            return
        self._launch = msgspec.structs.replace(self._launch, settings=settings)
        for slot in self._listening:
            self._tell(slot)

    def _start(self, slot: int) -> None:
        reader, report = self._processes.Pipe(duplex=False)
        worker = self._processes.Process(target=_begin, args=(self._launch, self._listener, slot, report), daemon=False)
        worker.start()
        report.close()
        self._reports[reader] = slot
        self._workers[slot] = worker
        self._begun[slot] = time.monotonic()
        self._listening.discard(slot)
        self._given[slot] = self._launch

    def _tell(self, slot: int) -> None:
        """Has the worker read the configuration again."""
        self._given[slot] = self._launch
        self._signal(slot, signal.SIGHUP)

    def _wait(self) -> None:
        """Until a signal came, a worker ended, or one began to serve."""
        sentinels = [worker.sentinel for worker in self._workers.values()]
        ready = wait([self._woken, *self._reports, *sentinels])
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4096)
        for reader in [reader for reader in self._reports if reader in ready]:
            slot = self._reports.pop(reader)
            with contextlib.suppress(EOFError):  # it ended before it served
                reader.recv_bytes()
                self._served.add(slot)
                self._listening.add(slot)
                if self._given[slot] is not self._launch:
                    self._tell(slot)  # the configuration changed while it started
                if len(self._served) == len(self._workers) and not self._announced:
                    self._announced = True
                    self._announce()
            reader.close()

    def _pause(self, until: float) -> None:
        while not self._stopping and (left := until - time.monotonic()) > 0:
            wait([self._woken], left)
            with contextlib.suppress(BlockingIOError):
                self._woken.recv(4096)

    def _stop(self) -> None:
        self._stopping = True
        # Open here, it would go on taking connections that no worker serves.
        self._listener.close()
        for slot in self._workers:
            self._signal(slot, signal.SIGTERM)

    def _signal(self, slot: int, number: signal.Signals) -> None:
        worker = self._workers[slot]
        if worker.pid is not None and worker.is_alive():
            os.kill(worker.pid, number)

    def _join(self) -> None:
        deadline = time.monotonic() + self._launch.settings.server.drain + _STOP_GRACE
        for worker in self._workers.values():
            worker.join(max(0.0, deadline - time.monotonic()))
            if worker.is_alive():
                log.error("worker %s did not stop in time and is killed", worker.pid)
                worker.kill()
                worker.join()
