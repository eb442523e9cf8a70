"""What the gateway costs, against this machine's own ceiling.

Runs a bare ASGI callable, bare proxies, and the gateway in several states,
interleaved round by round, and prints medians and ratios. Only ratios within
one run count: these machines are shared.

    python -m benchmarks.load [--rounds 5] [--seconds 4] [--json FILE]

Needs `wrk` (Debian: apt-get install wrk) and two cores: the server under test
is pinned to one, the load generator and the mock provider to the other.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SERVER_CORE, LOAD_CORE = "0", "1"
_TASKSET = shutil.which("taskset") or "taskset"
CONNECTIONS = 32
QUESTION = "Which boots do you recommend for a week of walking in the rain?"
BODY = {
    "model": "gpt-4o",
    "messages": [
        {"role": "system", "content": "You sell shoes in Berlin. Answer briefly, kindly, and to the point."},
        {"role": "user", "content": QUESTION},
    ],
}
ANSWER_TOKENS = 90  # about 700 bytes on the wire

# Every request asks something new, so that no cache has it.
UNIQUE = """
local n = tonumber(os.getenv("KEEPGATE_BENCH_FROM"))
request = function()
  n = n + 1
  return wrk.format("POST", nil, nil, (wrk.body:gsub("BOOTS", "boots number " .. n)))
end
"""

# White space is a difference to the exact tier and none to MiniLM: the embedder runs each time and finds the one entry.
REPHRASED = """
local n = tonumber(os.getenv("KEEPGATE_BENCH_FROM"))
request = function()
  n = n + 1
  local bits, rest = {}, n
  repeat bits[#bits + 1] = (rest % 2 == 0) and " " or "\\\\t"; rest = math.floor(rest / 2) until rest == 0
  return wrk.format("POST", nil, nil, (wrk.body:gsub("MARKS", table.concat(bits))))
end
"""


def main() -> int:
    options = _options()
    if shutil.which("wrk") is None:
        print("wrk is not installed: apt-get install wrk", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="keepgate-bench-") as folder, contextlib.ExitStack() as running:
        cases = _start(Path(folder), running)
        results: dict[str, list[float]] = {name: [] for name in cases}
        latencies: dict[str, list[float]] = {name: [] for name in cases}
        for number in range(1, options.rounds + 1):
            for name, measure in cases.items():
                print(f"round {number}/{options.rounds}: {name:<44}", end="\r", file=sys.stderr, flush=True)
                results[name].append(measure(CONNECTIONS, options.seconds)["requests"])
            for name, measure in cases.items():
                latencies[name].append(measure(1, max(1, options.seconds // 2))["p50_ms"])
        print(" " * 70, end="\r", file=sys.stderr)
    report = _report(results, latencies)
    _print(report)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="of each measurement at 32 connections")
    parser.add_argument("--json", type=Path, help="write the report here as well")
    return parser.parse_args()


def _start(folder: Path, running: contextlib.ExitStack) -> dict[str, Callable[[int, int], dict[str, float]]]:
    mock, bare, exact, off, semantic = (_free_port() for _ in range(5))
    python = sys.executable
    start = running.enter_context
    tokens = str(ANSWER_TOKENS)
    start(
        _process([python, "-m", "service", "mock-upstream", "--port", str(mock), "--tokens", tokens], mock, LOAD_CORE)
    )
    upstream = f"http://127.0.0.1:{mock}/v1/chat/completions"
    start(_process([python, "-m", "benchmarks.bare", "callable", str(bare)], bare, SERVER_CORE))
    proxies = {name: _free_port() for name in ("aiohttp", "pyreqwest") if _installed(name)}
    for name, port in proxies.items():
        start(_process([python, "-m", "benchmarks.bare", name, str(port), upstream], port, SERVER_CORE))
    for name, port, mode in (("exact", exact, "semantic"), ("off", off, "off"), ("semantic", semantic, "semantic")):
        config = folder / f"{name}.yaml"
        config.write_text(_config(folder / name, port, mock, mode))
        command = [python, "-m", "service", "serve", "--config", str(config)]
        start(_process(command, port, SERVER_CORE, ready=f"http://127.0.0.1:{port}/health/ready"))

    key = {name: _key(folder / f"{name}.yaml") for name in ("exact", "off", "semantic")}
    script = folder / "same.lua"
    unique = folder / "unique.lua"
    same = json.dumps(BODY)
    new = json.dumps(BODY).replace("boots", "BOOTS")
    script.write_text(f"wrk.method = 'POST'\nwrk.body = [[{same}]]\n")
    unique.write_text(f"wrk.method = 'POST'\nwrk.body = [[{new}]]\n{UNIQUE}")
    # One stored answer, then the same in ever other words: each is embedded and found.
    _ask(semantic, key["semantic"], QUESTION)
    rephrased = folder / "rephrased.lua"
    rephrased.write_text(f"wrk.method = 'POST'\nwrk.body = [[{json.dumps(BODY).replace('?', '?MARKS')}]]\n{REPHRASED}")
    _ask(exact, key["exact"], QUESTION)
    counter = iter(range(10**9))

    def case(port: int, lua: Path, name: str = "") -> Callable[[int, int], dict[str, float]]:
        return lambda connections, seconds: _wrk(port, lua, key.get(name), connections, seconds, next(counter))

    return {
        "bare callable": case(bare, script),
        **{f"bare proxy ({name})": case(port, script) for name, port in proxies.items()},
        "exact hit": case(exact, script, "exact"),
        "miss, cache off": case(off, script, "off"),
        "miss, semantic cache on, unique": case(exact, unique, "exact"),
        "semantic hit": case(semantic, rephrased, "semantic"),
    }


def _config(storage: Path, port: int, mock: int, mode: str) -> str:
    return f"""\
server: {{port: {port}}}
storage: {{path: "{storage}"}}
upstreams: [{{name: mock, provider: openai-compatible, base_url: "http://127.0.0.1:{mock}/v1", api_key: sk-mock}}]
endpoints: [{{name: default, cache: {{mode: "{mode}"}}}}]
keys: {{require: true}}
logs: {{requests: "{storage}.jsonl"}}
"""


def _key(config: Path) -> str:
    command = [sys.executable, "-m", "service", "keys", "create", "--name", "bench", "--config", str(config)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603


def _ask(port: int, key: str, question: str) -> None:
    asked = {**BODY, "messages": [BODY["messages"][0], {"role": "user", "content": question}]}
    request = urllib.request.Request(  # loopback
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(asked).encode(),
        {"authorization": f"Bearer {key}"},
    )
    with urllib.request.urlopen(request, timeout=10) as reply:  # noqa: S310
        reply.read()
    time.sleep(0.2)  # the answer is written to both tiers after it was sent


def _wrk(port: int, script: Path, key: str | None, connections: int, seconds: int, run: int) -> dict[str, float]:
    command = [_TASKSET, "-c", LOAD_CORE, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    command += ["-s", str(script), "-H", "content-type: application/json"]
    command += ["-H", f"authorization: Bearer {key}"] if key else []
    environ = {**os.environ, "KEEPGATE_BENCH_FROM": str(run * 10_000_000)}
    told = subprocess.run(  # noqa: S603
        [*command, f"http://127.0.0.1:{port}/v1/chat/completions"],
        check=True,
        capture_output=True,
        text=True,
        env=environ,
    ).stdout
    if "Non-2xx" in told or "Socket errors" in told:
        raise RuntimeError(f"not every request was answered:\n{told}")
    return {"requests": _number(r"Requests/sec:\s+([\d.]+)", told), "p50_ms": _milliseconds(told)}


def _number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"wrk printed something else:\n{text}")
    return float(found[1])


def _milliseconds(text: str) -> float:
    value = _number(r"50%\s+([\d.]+)", text)
    unit = re.search(r"50%\s+[\d.]+(us|ms|s)", text)
    return value * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit[1] if unit else "ms"]


@contextlib.contextmanager
def _process(command: list[str], port: int, core: str, *, ready: str | None = None) -> Iterator[None]:
    process = subprocess.Popen(  # noqa: S603
        [_TASKSET, "-c", core, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        _wait(process, port, ready)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: "subprocess.Popen[str]", port: int, ready: str | None) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(process.stderr.read() if process.stderr else "it did not start")
        with contextlib.suppress(OSError):
            if ready is None:
                socket.create_connection(("127.0.0.1", port), 1).close()
            else:
                urllib.request.urlopen(ready, timeout=1).close()  # noqa: S310  # loopback; 503 is an OSError too
            return
        time.sleep(0.1)
    raise RuntimeError(f"nothing answers on port {port}")


def _report(results: dict[str, list[float]], latencies: dict[str, list[float]]) -> dict[str, Any]:
    bare = "bare callable"
    proxy = max(
        (name for name in results if name.startswith("bare proxy")), key=lambda n: statistics.median(results[n])
    )
    against = {name: bare if "hit" in name else proxy for name in results if not name.startswith("bare")}
    return {
        "connections": CONNECTIONS,
        "cases": {
            name: {
                "requests_per_second": round(statistics.median(values)),
                "rounds": [round(value) for value in values],
                "p50_ms_one_connection": round(statistics.median(latencies[name]), 3),
            }
            for name, values in results.items()
        },
        "ratios": {
            name: {
                "of": base,
                # Pair by pair: what slows the machine down slows both of a pair.
                "ratio": round(statistics.median(a / b for a, b in zip(results[name], results[base], strict=True)), 3),
            }
            for name, base in against.items()
        },
    }


def _print(report: dict[str, Any]) -> None:
    print(f"{'case':<34}{'requests/s':>12}{'p50 at 1 conn.':>16}{'ratio':>8}  of")
    for name, case in report["cases"].items():
        ratio = report["ratios"].get(name)
        shown = f"{ratio['ratio']:>8.2f}  {ratio['of']}" if ratio else ""
        print(f"{name:<34}{case['requests_per_second']:>12,}{case['p50_ms_one_connection']:>13.3f} ms{shown}")


def _installed(package: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(package) is not None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())
