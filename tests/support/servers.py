"""Real server processes on loopback for tests."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_port(*, below: int = 65536) -> int:
    """A TCP port nobody listens on now; somebody may by the time it is used."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            if port < below:
                return port


@dataclass(frozen=True)
class Server:
    """A running process that answers on `port`; its output goes to `log`."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@contextmanager
def running(
    command: Sequence[str],
    *,
    port: int,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    ready_within: float = 60.0,
    stop_within: float = 10.0,
) -> Iterator[Server]:
    """Starts `command`, waits until `port` takes connections, and ends it by its pid. Times are seconds.

    Raises RuntimeError with the output if the process ends or does not listen
    in time. `env` adds to the environment of the tests. The process gets its
    own group, so that what it started ends with it.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - the tests' own command
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            process_group=0,
        )
        server = Server(process=process, port=port, log=log)
        try:
            _wait_until_it_listens(server, ready_within)
            yield server
        finally:
            _stop(process, stop_within)


@contextmanager
def mock_upstream(log: Path, *arguments: str) -> Iterator[Server]:
    """The mock provider in its own process; `arguments` are keyword arguments of its `run`, such as `tokens=5`."""
    port = free_port()
    call = f"from service.bench.mock_upstream import run; run({', '.join([f'port={port}', *arguments])})"
    with running([sys.executable, "-c", call], port=port, log=log) as server:
        yield server


def _wait_until_it_listens(server: Server, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", server.port), timeout=1).close()
        except OSError as error:
            if server.process.poll() is not None:
                raise RuntimeError(f"ended with {server.process.returncode}:\n{server.output()}") from error
            if time.monotonic() > deadline:
                raise RuntimeError(f"not listening after {seconds} s:\n{server.output()}") from error
            time.sleep(0.02)
        else:
            return


def _stop(process: subprocess.Popen[bytes], seconds: float) -> None:
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    with suppress(ProcessLookupError):  # most leave nothing of their group
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
