"""What embedding tells the world: nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from backends.embedding import minilm

EMBEDS_AND_TELLS_ITS_SOCKETS = """
import asyncio, os, pathlib, sys
from backends.embedding.onnx import OnnxEmbedder

async def embed():
    embedder = OnnxEmbedder(cache=pathlib.Path(sys.argv[1]))
    await embedder.load()
    await embedder.embed(["a question nobody else should see"], role="query")
    await embedder.close()

asyncio.run(embed())
open_files = [pathlib.Path("/proc/self/fd", number) for number in os.listdir("/proc/self/fd")]
print(*(link for link in map(os.readlink, filter(os.path.lexists, open_files)) if link.startswith("socket:")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_embedding_leaves_no_files_at_home_and_opens_no_sockets(tmp_path: Path) -> None:
    model_cache = minilm.build(report=print).parent

    told = run_at(tmp_path, EMBEDS_AND_TELLS_ITS_SOCKETS, str(model_cache))

    assert told.stdout.strip() == ""
    assert list(tmp_path.rglob("*")) == []


def test_whoever_wants_the_telemetry_gets_it(tmp_path: Path) -> None:
    code = "import os, backends.embedding.runtime; print(os.environ['ORT_DISABLE_TELEMETRY'])"

    assert run_at(tmp_path, code, ORT_DISABLE_TELEMETRY="0").stdout.strip() == "0"
    assert run_at(tmp_path, code).stdout.strip() == "1"


def run_at(home: Path, code: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """`code` in a process of its own, for a user whose home this is."""
    inherited = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    return subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", code, *arguments],
        env={**inherited, "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), **environ},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
