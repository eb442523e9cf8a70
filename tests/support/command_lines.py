"""The command lines `claude` and `codex`, as those run them who have them talk to the gateway.

`make test` fetches them; tests/npm says which. A run has a home folder of its
own in `directory`, nothing of the tests' environment but PATH, nothing to
read, and, whatever else they would look up, a proxy that nobody answers at.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_PACKAGES = Path(sys.prefix, "npm", "node_modules")
_NODE = Path(sys.prefix, "bin", "node")
_CLAUDE = _PACKAGES / "@anthropic-ai" / "claude-code" / "cli-wrapper.cjs"
_CODEX = _PACKAGES / "@openai" / "codex" / "bin" / "codex.js"
_SECONDS = 60.0
_NOBODY = "http://127.0.0.1:1"
_LOOPBACK_ONLY = {"HTTP_PROXY": _NOBODY, "HTTPS_PROXY": _NOBODY, "NO_PROXY": "127.0.0.1"}

_CODEX_SETTINGS = """\
model_provider = "keepgate"
check_for_update_on_startup = false

[analytics]
enabled = false

[features]
apps = false
plugins = false

[model_providers.keepgate]
name = "Keepgate"
base_url = "{base_url}"
env_key = "KEEPGATE_KEY"
wire_api = "responses"
"""


class CommandFailed(Exception):
    """It ended with an error, or not within a minute. `str()` has all that it said."""


def missing() -> Sequence[Path]:
    """What `make test` would have installed, and has not."""
    return [path for path in (_NODE, _CLAUDE, _CODEX) if not path.exists()]


def claude(prompt: str, *, gateway: str, key: str, model: str, directory: Path) -> str:
    """What `claude -p` prints. `gateway` is a base URL as Anthropic's SDKs take it, without `/v1`."""
    environment = {
        "ANTHROPIC_BASE_URL": gateway,
        "ANTHROPIC_AUTH_TOKEN": key,
        "ANTHROPIC_MODEL": model,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    return _printed([_NODE, _CLAUDE, "-p", prompt], environment, directory)


def codex(prompt: str, *, gateway: str, key: str, model: str, directory: Path) -> str:
    """What `codex exec` prints as its answer. `gateway` is a base URL with `/v1`.

    It may run any command: whoever answers it is a test.
    """
    settings = directory / "home" / ".codex" / "config.toml"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(_CODEX_SETTINGS.format(base_url=gateway))
    options = ("--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "--model", model)
    return _printed([_NODE, _CODEX, "exec", *options, prompt], {"KEEPGATE_KEY": key}, directory)


def _printed(command: Sequence[str | Path], environment: Mapping[str, str], directory: Path) -> str:
    """Raises `CommandFailed`."""
    home, work = directory / "home", directory / "work"
    for folder in (home, work):
        folder.mkdir(parents=True, exist_ok=True)
    output, errors = directory / "output", directory / "errors"
    # Into files: what a command leaves behind may hold a pipe open for longer than it lives.
    with output.open("wb") as out, errors.open("wb") as err:
        process = subprocess.Popen(  # noqa: S603 - the tests' own command
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=work,
            env={"PATH": os.environ["PATH"], "HOME": str(home), **_LOOPBACK_ONLY, **environment},
            process_group=0,
        )
        try:
            status: int | str = process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            status = f"nothing after {_SECONDS:.0f} s"
        finally:
            with suppress(ProcessLookupError):  # most leave nothing of their group
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    said = output.read_text(errors="replace").strip()
    if status != 0:
        raise CommandFailed(f"it ended with {status}:\n{said}\n{errors.read_text(errors='replace')}")
    return said
