"""`keepgate tune` as a shell runs it: from labels, logs, people and a judge model to a certificate."""

import asyncio
import http.server
import json
import math
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.embedding import minilm
from backends.tuning.files import TuningFiles
from service.caching.agreement import Agreement
from service.caching.lookups import LOG, Lookup, Row, Verdict, decoded, encoded
from service.caching.verifier import load
from service.pipeline.tuning import Tuning
from service.settings import load as load_settings
from service.wiring import Runtime
from tests.support.gateway import eventually, settings
from tests.support.servers import ROOT

TRAINED = load(minilm.REVISION).revision
PHRASINGS = (
    "How can I {} the {}?",
    "What is the best way to {} the {}?",
    "Could you explain how to {} the {}?",
    "How would somebody {} the {}?",
)
VERBS = ("clean", "repair", "paint", "measure", "store", "weld", "transport", "photograph", "insulate", "dismantle")
THINGS = (
    "bicycle",
    "greenhouse",
    "telescope",
    "violin",
    "chimney",
    "aquarium",
    "sofa",
    "tractor",
    "lighthouse",
    "oven",
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where the configuration, with an endpoint that has a limit and one that has none, and its storage are."""
    config = settings(
        tmp_path,
        "http://127.0.0.1:9/v1",
        endpoints=[
            {"name": "default"},
            {"name": "faq", "cache": {"mode": "semantic", "max_wrong_hit_rate": 0.05, "lookups": "texts"}},
        ],
    )
    (tmp_path / "keepgate.yaml").write_text(json.dumps(config))
    (tmp_path / "data").mkdir()
    return tmp_path


def command(home: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "service", "tune", "--config", str(home / "keepgate.yaml"), *arguments]


def tune(
    home: Path, *arguments: str, endpoint: str = "faq", typed: str | None = None, encoding: str = "utf-8"
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - the tests' own command
        command(home, "--endpoint", endpoint, *arguments),
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        input="" if typed is None else typed,
        capture_output=True,
        encoding=encoding,
        timeout=110,
        check=False,
    )


def jsonl(file: Path, rows: Sequence[Any]) -> Path:
    file.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return file


def clusters() -> list[dict[str, str]]:
    return [
        {"text": phrasing.format(verb, thing), "cluster": f"{verb} {thing}"}
        for verb in VERBS
        for thing in THINGS
        for phrasing in PHRASINGS
    ]


def pairs(count: int) -> list[dict[str, Any]]:
    """Half of them the same, in other words; half about another thing."""
    made: list[dict[str, Any]] = []
    for at in range(count):
        verb, thing = VERBS[at % 10], THINGS[at // 10 % 10]
        other = THINGS[(at // 10 + 1) % 10] if at % 2 else thing
        one, another = PHRASINGS[at % 3], PHRASINGS[at % 3 + 1]
        made.append({"a": one.format(verb, thing), "b": another.format(verb, other), "label": 1 - at % 2})
    return made


def logged(home: Path, count: int, *, seed: int = 0, labelled: bool = True, with_texts: bool = True) -> list[bool]:
    """Look-ups of the endpoint `faq`; the truth of each, whether its candidate is wrong."""
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    truth = []
    for at in range(count):
        right = bool(rng.random() < 0.8)
        cosine = float(np.clip(rng.normal(0.9 if right else 0.8, 0.04), -1, 0.999))
        chance = float(1 / (1 + math.exp(-rng.normal(3 if right else -3, 1.0))))
        share = 0.9 if right else 0.3
        rows.append(
            Lookup(
                time=time.time() - count + at,
                endpoint="faq",
                request_id=f"r{at}",
                asked=f"{at:032x}",
                entry=f"{at:016x}",
                cosine=cosine,
                embedder=minilm.REVISION,
                verifier=TRAINED,
                chance=chance,
                agreement=Agreement(cosine, share / 4, share / 5, share, share, share, 4 - 3 * share, cosine - 0.02),
                outcome=("same" if right else "different") if labelled else "",
                question=f"question {at} is {'right' if right else 'wrong'}" if with_texts else "",
                stored=f"stored {at}" if with_texts else "",
                kept="an answer",
            )
        )
        truth.append(not right)
    (home / "data" / LOG).write_bytes(b"".join(encoded(row) + b"\n" for row in rows))
    return truth


def verdicts(home: Path) -> list[Verdict]:
    rows: list[Row] = [decoded(line) for line in (home / "data" / LOG).read_bytes().splitlines()]
    return [row for row in rows if isinstance(row, Verdict)]


# --- from a file


def test_clusters_certify_and_what_is_certified_is_shown_and_removed(home: Path) -> None:
    file = jsonl(home / "questions.jsonl", clusters())

    done = tune(home, "--labels", str(file), "--json")
    shown, told = tune(home, "--show", "--json"), tune(home, "--show")
    removed, after = tune(home, "--remove"), tune(home, "--show", "--json")

    result, state = json.loads(done.stdout), json.loads(shown.stdout)
    assert (done.returncode, result["certified"], result["kept"]) == (0, True, True)
    assert "about 361 labels" in done.stderr
    assert "400 questions in clusters" in done.stderr
    certificate = state["certificate"]
    assert certificate == result["certificate"]
    assert certificate["upper"] <= certificate["limit"] == 0.05
    assert certificate["origin"]["labelled_by"] == "people"
    assert certificate["origin"]["embedder"] == minilm.REVISION
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", certificate["origin"]["date"])
    assert "share" in result["fit"]["columns"]
    assert (state["holds"], state["why_not"]) == (True, "")
    assert "It holds here and now." in told.stdout
    assert (removed.returncode, after.returncode) == (0, 0)
    assert json.loads(after.stdout)["certificate"] is None


def test_a_certificate_that_audits_stopped_is_not_shown_as_holding(home: Path) -> None:
    tune(home, "--labels", str(jsonl(home / "questions.jsonl", clusters())))
    kept = Tuning(TuningFiles(path=home / "data" / "tuning"))
    watched = kept.audited("faq", cut=math.inf, wrong=True)
    while watched is not None and watched.cut is not None:
        watched = kept.audited("faq", cut=watched.cut, wrong=True)

    told = tune(home, "--show")

    assert "audits found the limit broken at every cut: nothing is served" in told.stdout
    assert "It holds here and now" not in told.stdout


async def test_a_running_gateway_goes_by_it_within_seconds_and_without_it_when_it_is_removed(home: Path) -> None:
    file = jsonl(home / "questions.jsonl", clusters())
    config = home / "keepgate.yaml"
    runtime = Runtime(load_settings(config, {}), config=config, environ={}, admin_token="t")
    await runtime.start()
    try:
        before = certified(runtime)
        await asyncio.to_thread(tune, home, "--labels", str(file))
        await asyncio.to_thread(eventually, lambda: certified(runtime), within=20)
        await asyncio.to_thread(tune, home, "--remove")
        await asyncio.to_thread(eventually, lambda: not certified(runtime), within=20)
    finally:
        await runtime.close()

    assert not before


def certified(runtime: Runtime) -> bool:
    assert runtime.semantic is not None
    return runtime.semantic.rules["faq"].certified


def test_too_few_pairs_say_how_many_are_missing(home: Path) -> None:
    done = tune(home, "--labels", str(jsonl(home / "pairs.jsonl", pairs(20))), "--limit", "0.02")

    assert done.returncode == 1
    assert "about 969 labels" in done.stderr
    assert re.search(r"Not certified: .* about [\d,]+ more labels are missing", done.stdout)
    assert "hits are decided as without it" in done.stdout


def test_bad_lines_are_named_and_skipped_or_refused(home: Path) -> None:
    odd = [
        {"a": "x" * 100_000, "b": "y", "label": 1},
        {"a": "如何清洁望远镜?", "b": "怎样清洁望远镜?", "label": 1},
        {"a": "🎉", "b": "🎊", "label": 0},
        {"a": "def f(): pass", "b": "def g(): pass", "label": 0},
    ]
    file = jsonl(home / "pairs.jsonl", [*pairs(10), b"{", b"\xff\xfe", {"a": "", "b": "c", "label": 1}, *odd])

    done, strict = tune(home, "--labels", str(file)), tune(home, "--labels", str(file), "--strict")

    assert done.returncode == 1
    assert "3 lines cannot be used" in done.stderr
    assert "2 no JSON in UTF-8 (pairs.jsonl:11, pairs.jsonl:12)" in done.stderr
    assert "1 an empty question (pairs.jsonl:13)" in done.stderr
    assert "left out: never looked up: too-long" in done.stderr
    assert strict.returncode == 2
    assert "--strict refuses" in strict.stderr
    assert strict.stdout == ""


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\x00\x01\x02", b"[]\n" * 3])
def test_a_file_without_a_label_certifies_nothing(home: Path, content: bytes) -> None:
    (home / "pairs.jsonl").write_bytes(content)

    done = tune(home, "--labels", str(home / "pairs.jsonl"))

    assert done.returncode == 1
    assert "there is no label of a look-up that could be served" in done.stdout
    assert "Nothing was written" in done.stdout
    assert "Traceback" not in done.stderr


def test_an_endpoint_without_a_limit_is_certified_and_told_what_that_takes(home: Path) -> None:
    file = jsonl(home / "questions.jsonl", clusters())

    done = tune(home, "--labels", str(file), "--limit", "0.05", endpoint="default")
    shown = tune(home, "--show", endpoint="default")

    assert done.returncode == 0
    assert "set max_wrong_hit_rate to 0.05 or more" in done.stdout
    assert "It does not hold here: the endpoint has no max_wrong_hit_rate." in shown.stdout


def test_a_dry_run_writes_nothing(home: Path) -> None:
    file = jsonl(home / "questions.jsonl", clusters())

    done = tune(home, "--labels", str(file), "--dry-run")

    assert done.returncode == 0
    assert "Nothing was written" in done.stdout
    assert not (home / "data" / "tuning").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--labels", "nowhere.jsonl"], "cannot be read"),
        (["--labels", "."], "cannot be read"),
        (["--from-log"], "is not there"),
        (["--from-log", "nowhere.jsonl"], "cannot be read"),
        (["--review"], "is not there"),
        (["--judge", "nobody/model"], "no upstream and its model; there are: mock/MODEL"),
        (["--judge", "mock"], "no upstream and its model"),
        (["--labels", "/dev/null", "--limit", "0"], "--limit 0"),
        (["--labels", "/dev/null", "--confidence", "1"], "--confidence 1"),
        (["--labels", "/dev/null", "--review"], "not allowed with"),
        ([], "one of the arguments"),
    ],
    ids=" ".join,
)
def test_bad_usage_is_2(home: Path, arguments: list[str], said: str) -> None:
    done = tune(home, *arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_an_endpoint_that_nobody_configured_is_bad_usage(home: Path) -> None:
    done = tune(home, "--show", endpoint="f\x1baq")

    assert done.returncode == 2
    assert "known: default, faq" in done.stderr
    assert "\x1b" not in done.stderr


# --- from the log


def test_automatic_labels_inform_and_verdicts_certify(home: Path) -> None:
    truth = logged(home, 1_500)

    informed = tune(home, "--from-log", "--json")
    rows = [
        Verdict(time=time.time(), endpoint="faq", entry=f"{at:016x}", asked=f"{at:032x}", wrong=wrong, by="people")
        for at, wrong in enumerate(truth[:900])
    ]
    with (home / "data" / LOG).open("ab") as log:
        log.write(b"".join(encoded(row) + b"\n" for row in rows))
    proved = tune(home, "--from-log", "--json")

    first, second = json.loads(informed.stdout), json.loads(proved.stdout)
    assert (informed.returncode, first["certified"]) == (1, False)
    assert first["certificate"]["origin"]["labelled_by"] == "automatic"
    assert (proved.returncode, second["certified"]) == (0, True)
    assert second["certificate"]["origin"]["labelled_by"] == "people"
    assert second["certificate"]["samples"] <= 900
    assert second["informs"]["samples"] <= 1_500


def test_a_log_without_anything_to_learn_from_says_so(home: Path) -> None:
    logged(home, 50, labelled=False)

    done = tune(home, "--from-log")

    assert done.returncode == 1
    assert "no label of a look-up" in done.stdout
    assert "50 look-ups of this endpoint" in done.stderr


def test_a_log_of_others_and_one_that_is_cut_off_are_counted(home: Path) -> None:
    logged(home, 30)
    log = home / "data" / LOG
    log.write_bytes(log.read_bytes().replace(minilm.REVISION.encode(), b"another", 10) + b'{"kind":"loo')

    done = tune(home, "--from-log", "--since", "7d")

    assert done.returncode == 1
    assert "the last line is cut off (lookups.jsonl:31)" in done.stderr
    assert "10 rows left out: of another embedder" in done.stderr


def test_a_copy_of_a_log_is_as_good(home: Path) -> None:
    logged(home, 40)
    (home / "data" / LOG).rename(home / "copy.jsonl")

    done = tune(home, "--from-log", str(home / "copy.jsonl"), "--json")

    assert json.loads(done.stdout)["read"]["rows"] == 40


# --- by people


def test_a_person_reviews_through_a_pipe(home: Path) -> None:
    logged(home, 40)

    done = tune(home, "--review", "--most", "3", typed="y\nn\nu\ns\ny\nn\ny\n")

    assert done.returncode == 0
    assert "2 pairs said to be the same, 1 different, 1 skipped" in done.stdout
    assert [(one.wrong, one.undone) for one in verdicts(home)] == [
        (False, False),
        (True, False),
        (True, True),
        (False, False),
        (True, False),
    ]
    assert "1 people" not in tune(home, "--show").stdout
    assert "3 people" in tune(home, "--show").stdout


def test_a_log_without_texts_says_how_to_have_them(home: Path) -> None:
    logged(home, 10, with_texts=False)

    done = tune(home, "--review", typed="y\n")

    assert done.returncode == 1
    assert "set `lookups: texts` in the cache section of the endpoint faq" in done.stderr


def test_a_verdict_outlives_a_kill(home: Path) -> None:
    logged(home, 10)
    reviewing = subprocess.Popen(  # noqa: S603 - the test's own command
        command(home, "--endpoint", "faq", "--review"), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    assert reviewing.stdin is not None
    try:
        reviewing.stdin.write(b"y\nn\n")
        reviewing.stdin.flush()
        eventually(lambda: len(verdicts(home)) == 2, within=60)
    finally:
        reviewing.send_signal(signal.SIGKILL)
        reviewing.stdin.close()
        reviewing.wait()

    assert [one.wrong for one in verdicts(home)] == [False, True]


def test_on_a_terminal_a_key_is_enough_and_the_terminal_is_left_as_it_was(home: Path) -> None:
    logged(home, 10)
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    shown = home / "shown.txt"
    with shown.open("wb") as out:
        reviewing = subprocess.Popen(  # noqa: S603 - the test's own command
            command(home, "--endpoint", "faq", "--review"), cwd=ROOT, stdin=theirs, stdout=out
        )
    try:
        # What is typed before there is anything to judge says nothing of it.
        eventually(lambda: "q quit" in shown.read_text(), within=60)
        os.write(ours, b"y")
        eventually(lambda: len(verdicts(home)) == 1, within=60)
        os.write(ours, b"q")
        assert reviewing.wait(timeout=60) == 0
        assert termios.tcgetattr(theirs) == before
    finally:
        reviewing.kill()
        reviewing.wait()
        os.close(ours)
        os.close(theirs)


# --- by a model


class JudgeHandler(http.server.BaseHTTPRequestHandler):
    """Says of a question that is `right` that it is the same, in the word it was given."""

    asked = 0

    def do_POST(self) -> None:
        JudgeHandler.asked += 1
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = body["messages"][1]["content"]
        word = re.findall(r"SAME-\w+" if " is right" in text else r"DIFFERENT-\w+", text)[-1]
        answer = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [{"index": 0, "message": {"role": "assistant", "content": word}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - its name in the base class
        del format, arguments


@pytest.fixture
def judge_url() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), JudgeHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_judge_model_labels_the_rest_and_its_labels_certify(home: Path, judge_url: str) -> None:
    truth = logged(home, 500)
    config = json.loads((home / "keepgate.yaml").read_text())
    config["upstreams"][0]["base_url"] = judge_url
    (home / "keepgate.yaml").write_text(json.dumps(config))

    some = tune(home, "--judge", "mock/judge-1", "--most", "20")
    rest = tune(home, "--judge", "mock/judge-1")
    proved = tune(home, "--from-log", "--json")

    assert (some.returncode, rest.returncode) == (0, 0)
    assert "20 calls to mock/judge-1, about " in some.stderr
    assert "480 calls to mock/judge-1" in rest.stderr
    assert JudgeHandler.asked == len(verdicts(home)) == 500
    assert {int(one.asked, 16): one.wrong for one in verdicts(home)} == dict(enumerate(truth))
    result = json.loads(proved.stdout)
    assert (proved.returncode, result["certificate"]["origin"]["labelled_by"]) == (0, "judge")


def test_a_judge_that_is_not_there_labels_nothing(home: Path) -> None:
    logged(home, 40)

    done = tune(home, "--judge", "mock/judge-1")

    assert done.returncode == 1
    assert "too many calls failed in a row" in done.stderr
    assert verdicts(home) == []
    assert "Traceback" not in done.stderr


def test_a_log_of_texts_prints_nothing_raw_on_any_terminal(home: Path) -> None:
    logged(home, 3)
    log = home / "data" / LOG
    log.write_bytes(log.read_bytes().replace(b" is ", "\\u001b]0;x\\u0007 如何 \u202e".encode()))

    done = tune(home, "--review", typed="q\n", encoding="ascii")

    assert done.returncode == 0
    assert not set(done.stdout) & set("\x1b\x07")
    assert "\\u5982" in done.stdout
