"""`keepgate cache`: entries are counted, cleared, and moved between any two stores."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import pytest
import yaml

from tests.support.gateway import Gateway, Json, Mock, running_gateway, settings, text_of
from tests.support.servers import ROOT, Server
from tests.support.stores import grpc_port

_numbers = count()

ENDPOINTS: list[Json] = [
    {"name": "default", "cache": {"mode": "semantic", "ttl": "1h", "ttl_jitter": 0}},
    {"name": "other", "cache": {"mode": "semantic", "ttl": "1h", "ttl_jitter": 0}},
]
QUESTIONS = {
    "How do I reset the password of my account?": "How can I reset my account password?",
    "Which lake is near Zürich? ☀️": "What lake is near Zürich? ☀️",
}

Sections = Callable[[Callable[[str], Server]], Json]


def embedded(_: Callable[[str], Server]) -> Json:
    return {"cache": {"vector": {"deadline": "5s"}}}


def in_redis(server: Callable[[str], Server]) -> Json:
    return {
        "cache": {"exact": {"store": "redis", "deadline": "5s"}, "vector": {"store": "redis", "deadline": "5s"}},
        "redis": {"url": f"redis://127.0.0.1:{server('redis').port}", "prefix": f"moving-{next(_numbers)}"},
    }


def with_qdrant(server: Callable[[str], Server]) -> Json:
    qdrant = server("qdrant")
    return {
        "cache": {"vector": {"store": "qdrant", "deadline": "5s"}},
        "qdrant": {"url": qdrant.url, "grpc_port": grpc_port(qdrant), "prefix": f"moving-{next(_numbers)}"},
    }


STORES: dict[str, Sections] = {"embedded": embedded, "redis": in_redis, "qdrant": with_qdrant}


def keepgate(*arguments: str, fails: bool = False, input_: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service", "cache", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, input=input_, timeout=60, check=False)  # noqa: S603 - our own command
    assert (done.returncode != 0) is fails, done.stderr
    return done


def report(*arguments: str) -> Json:
    told: Json = json.loads(keepgate(*arguments, "--json").stdout)
    return told


def home(directory: Path, mock: Mock, sections: Json) -> Path:
    """A configuration of a gateway of its own."""
    directory.mkdir()
    file = directory / "keepgate.yaml"
    file.write_text(yaml.safe_dump(settings(directory, mock.url, **{"endpoints": ENDPOINTS, **sections})))
    return file


def fill(config: Path, *, endpoints: Sequence[str | None] = (None,)) -> None:
    with running(config) as gateway:
        for endpoint in endpoints:
            for question, reworded in QUESTIONS.items():
                gateway.ask(question, model="m", endpoint=endpoint)
                gateway.await_cached(reworded, model="m", endpoint=endpoint)


def running(config: Path):  # type: ignore[no-untyped-def]  # a context manager of a gateway
    return running_gateway(config.parent, yaml.safe_load(config.read_text()))


def answers(gateway: Gateway) -> list[tuple[str, str, str]]:
    """How each question, as it was asked and in other words, is answered."""
    told = []
    for question, reworded in QUESTIONS.items():
        exact, semantic = gateway.ask(question, model="m"), gateway.ask(reworded, model="m")
        told.append((exact.headers["x-keepgate-cache"], semantic.headers["x-keepgate-cache"], text_of(semantic)))
    return told


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("redis", "qdrant"),
        *(pytest.param(*pair, marks=pytest.mark.full) for pair in (("embedded", "redis"), ("qdrant", "embedded"))),
    ],
)
def test_what_one_store_knew_the_other_answers(
    tmp_path: Path, mock: Mock, store_server: Callable[[str], Server], one: str, other: str
) -> None:
    here, there = (
        home(tmp_path / name, mock, STORES[kind](store_server)) for name, kind in (("one", one), ("other", other))
    )
    fill(here)
    file = tmp_path / "entries.jsonl"

    written = report("export", str(file), "--config", str(here))
    read = report("import", str(file), "--config", str(there))
    again = report("import", str(file), "--config", str(there))
    calls = mock.calls()
    with running(there) as gateway:
        told = answers(gateway)

    assert written == {"entries": 2, "aliases": 0, "questions": 2, "already": 0}
    assert (read["entries"], read["questions"], read["bad"]) == (2, 2, 0)
    assert (again["entries"], again["already"]) == (0, 2)
    assert [outcome[:2] for outcome in told] == [("exact", "semantic")] * 2
    assert mock.calls() == calls
    assert file.stat().st_mode & 0o077 == 0


def test_entries_of_another_embedder_are_embedded_anew_if_asked(
    tmp_path: Path, mock: Mock, store_server: Callable[[str], Server]
) -> None:
    here = home(tmp_path / "one", mock, embedded(store_server))
    sections = {"cache": {"vector": {"deadline": "5s"}, "embedder": {"kind": "static"}}}
    there = home(tmp_path / "other", mock, sections)
    fill(here)
    file = tmp_path / "entries.jsonl"
    report("export", str(file), "--config", str(here))

    without = report("import", str(file), "--config", str(there))
    with_it = report("import", str(file), "--config", str(there), "--re-embed")
    with running(there) as gateway:
        found = gateway.ask("How do I reset the password of my account ?", model="m")

    assert (without["entries"], without["questions"], without["other_embedder"]) == (2, 0, 2)
    assert (with_it["already"], with_it["questions"], with_it["other_embedder"]) == (2, 2, 0)
    assert found.headers["x-keepgate-cache"] == "semantic"


def test_an_export_that_was_stopped_goes_on_where_it_was(
    tmp_path: Path, mock: Mock, store_server: Callable[[str], Server]
) -> None:
    here = home(tmp_path / "one", mock, embedded(store_server))
    fill(here)
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    report("export", str(whole), "--config", str(here))
    lines = whole.read_bytes().splitlines(keepends=True)
    cut.write_bytes(b"".join(lines[:2]) + lines[2][:50])

    refused = keepgate("export", str(cut), "--config", str(here), fails=True)
    resumed = report("export", str(cut), "--config", str(here), "--resume")

    assert "--resume goes on with it" in refused.stderr
    assert resumed == {"entries": 1, "aliases": 0, "questions": 2, "already": 1}
    assert sorted(cut.read_bytes().splitlines()) == sorted(whole.read_bytes().splitlines())


def test_what_cannot_be_read_is_counted_and_named_and_the_rest_is_taken(
    tmp_path: Path, mock: Mock, store_server: Callable[[str], Server]
) -> None:
    here, there = (home(tmp_path / name, mock, embedded(store_server)) for name in ("one", "other"))
    fill(here)
    file = tmp_path / "entries.jsonl"
    report("export", str(file), "--config", str(here))
    lines = file.read_text().splitlines()
    stray = ['{"kind": "entry", "namespace": 3}', "no JSON", '{"kind": "question", "vector": "%%%"}', '"\\ud800"']
    file.write_text("\n".join([lines[0], *stray, *lines[1:]]))

    done = keepgate("import", str(file), "--config", str(there), fails=True)

    assert "2 entries and 2 questions read" in done.stdout
    assert "4 lines could not be read" in done.stdout
    assert done.stderr.count("is no line of an export") == 4
    assert "line 2 " in done.stderr
    assert "Zürich" not in done.stderr


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is empty"),
        ("no JSON\n", "line 1 is no line of an export"),
        ('{"kind": "keepgate-cache", "version": 99, "written_at": 0}\n', "it has version 99 of the format"),
    ],
)
def test_a_file_that_is_no_export_is_refused(
    tmp_path: Path, mock: Mock, store_server: Callable[[str], Server], text: str, reason: str
) -> None:
    there = home(tmp_path / "there", mock, embedded(store_server))
    file = tmp_path / "entries.jsonl"
    file.write_text(text)

    done = keepgate("import", str(file), "--config", str(there), fails=True)

    assert done.stderr.startswith(f"keepgate: {file}: {reason}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "kind", ["redis", *(pytest.param(kind, marks=pytest.mark.full) for kind in ("embedded", "qdrant"))]
)
def test_entries_are_counted_and_cleared_by_endpoint_and_age(
    tmp_path: Path, mock: Mock, store_server: Callable[[str], Server], kind: str
) -> None:
    config = str(home(tmp_path / "one", mock, STORES[kind](store_server)))
    fill(Path(config), endpoints=("default", "other"))

    full = report("stats", "--config", config)
    one = report("stats", "--config", config, "--endpoint", "other")
    young = report("clear", "--config", config, "--older-than", "1h", "--yes")
    cleared = report("clear", "--config", config, "--endpoint", "other", "--yes")
    left = report("stats", "--config", config)
    old = report("clear", "--config", config, "--older-than", "1s", "--yes")
    nothing = report("stats", "--config", config)

    assert (full["exact"]["entries"], full["vector"]["entries"]) == (4, 4)
    assert full["endpoints"] == {"default": 2, "other": 2}
    assert one["endpoints"] == {"other": 2}
    assert (young["entries"], cleared["entries"], old["entries"]) == (0, 2, 2)
    assert (left["endpoints"], left["vector"]["entries"]) == ({"default": 2}, 2)
    assert (nothing["exact"]["entries"], nothing["vector"]["entries"]) == (0, 0)


def test_clearing_asks_where_somebody_can_be_asked(
    tmp_path: Path, mock: Mock, store_server: Callable[[str], Server]
) -> None:
    config = home(tmp_path / "one", mock, embedded(store_server))
    fill(config)

    unasked = keepgate("clear", "--config", str(config), fails=True)
    refused = at_a_terminal("n\n", "clear", "--config", str(config))
    agreed = at_a_terminal("y\n", "clear", "--config", str(config))

    assert "--yes clears without asking" in unasked.stderr
    assert unasked.returncode == 2
    assert "Clear 2 entries? [y/N]" in refused
    assert "Nothing was cleared." in refused
    assert "2 entries cleared" in agreed


def at_a_terminal(typed: str, *arguments: str) -> str:
    """What it says to somebody who types that."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "service", "cache", *arguments]
    with subprocess.Popen(  # noqa: S603 - our own command
        command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    ) as process:
        os.close(theirs)
        os.write(ours, typed.encode())
        told, _ = process.communicate(timeout=60)
    os.close(ours)
    return told


def test_a_store_inside_the_gateway_is_out_of_reach_and_says_so(tmp_path: Path, mock: Mock) -> None:
    config = home(tmp_path / "one", mock, {"cache": {"exact": {"store": "memory"}}})

    done = keepgate("stats", "--config", str(config), fails=True)

    assert "cache.exact.store: memory is inside the gateway's own process" in done.stderr


@pytest.mark.parametrize("command", [("stats",), ("clear", "--yes"), ("export", "-")])
def test_an_endpoint_that_nobody_knows_is_named(tmp_path: Path, mock: Mock, command: tuple[str, ...]) -> None:
    config = home(tmp_path / "one", mock, {"cache": {}})

    done = keepgate(*command, "--config", str(config), "--endpoint", "defualt")

    assert "keepgate: no endpoint is named 'defualt'; known: default, other" in done.stderr
