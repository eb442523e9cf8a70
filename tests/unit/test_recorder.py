import json
import os
import resource
import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from service.telemetry.metrics import Metrics, render
from service.telemetry.recorder import Record, Recorder, observe

SOON = 10.0


def test_a_row_holds_what_was_set_and_nothing_else(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "requests.log")
    recorder.start()

    recorder.record(
        Record(time=1.5, request_id="r1", endpoint="faq", model="gpt-4o", status=200, cache="semantic", similarity=0.97)
    )
    recorder.close()

    assert rows(tmp_path / "requests.log") == [
        {
            "time": 1.5,
            "request_id": "r1",
            "endpoint": "faq",
            "model": "gpt-4o",
            "status": 200,
            "cache": "semantic",
            "similarity": 0.97,
        }
    ]
    assert recorder.dropped == 0


def test_a_row_always_names_its_cache_outcome(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "requests.log")
    recorder.start()

    recorder.record(Record(time=1.5, request_id="r1"))
    recorder.close()

    assert rows(tmp_path / "requests.log") == [{"time": 1.5, "request_id": "r1", "cache": "bypass"}]


def test_rows_are_written_in_order_and_none_is_lost_on_closing(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "requests.log")
    recorder.start()

    for number in range(5_000):
        recorder.record(row(number))
    recorder.close()

    assert [written["request_id"] for written in rows(tmp_path / "requests.log")] == [str(n) for n in range(5_000)]
    assert recorder.dropped == 0


def test_a_file_is_appended_to(tmp_path: Path) -> None:
    for number in (1, 2):
        recorder = Recorder(tmp_path / "requests.log")
        recorder.start()
        recorder.record(row(number))
        recorder.close()

    assert [written["request_id"] for written in rows(tmp_path / "requests.log")] == ["1", "2"]


def test_a_file_that_was_moved_away_is_begun_anew_when_told(tmp_path: Path) -> None:
    log, rotated = tmp_path / "requests.log", tmp_path / "requests.log.1"
    recorder = Recorder(log, every=0.001)
    recorder.start()
    recorder.record(row(1))
    wait_until(lambda: log.stat().st_size)
    log.rename(rotated)

    recorder.reopen()
    recorder.record(row(2))
    recorder.close()

    assert [written["request_id"] for written in rows(rotated) + rows(log)] == ["1", "2"]
    assert log.exists()


def test_a_file_that_cannot_be_opened_again_is_written_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    recorder = Recorder(folder / "requests.log")
    folder.rename(tmp_path / "moved")
    recorder.start()

    recorder.reopen()
    recorder.record(row(1))
    recorder.close()

    assert len(rows(tmp_path / "moved" / "requests.log")) == 1
    assert "cannot be opened again" in caplog.text


def test_a_file_that_cannot_be_opened_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Recorder(tmp_path / "nowhere" / "requests.log")


def test_a_file_that_has_grown_is_begun_anew_and_one_is_kept(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "lookups.jsonl", most=50_000)
    recorder.start()

    for number in range(6_000):
        recorder.record(Record(time=0.0, request_id=f"r{number:04}"))
    recorder.close(timeout=SOON)

    now, before = rows(tmp_path / "lookups.jsonl"), rows(tmp_path / "lookups.1.jsonl")
    kept = [row["request_id"] for row in (*before, *now)]
    assert kept == [f"r{number:04}" for number in range(6_000 - len(kept), 6_000)]
    assert {path.name for path in tmp_path.iterdir()} == {"lookups.jsonl", "lookups.1.jsonl"}


def test_who_finds_that_another_process_began_a_file_anew_goes_on_in_that(tmp_path: Path) -> None:
    file = tmp_path / "lookups.jsonl"
    recorder = Recorder(file, most=50_000)
    recorder.start()
    file.rename(tmp_path / "lookups.1.jsonl")
    file.write_text("")

    recorder.record(Record(time=0.0, request_id="r1"))
    recorder.close(timeout=SOON)

    assert [row["request_id"] for row in rows(file)] == ["r1"]


def test_a_sink_nobody_reads_costs_rows_and_never_time(pipe: tuple[FileIO, FileIO]) -> None:
    reading, writing = pipe
    recorder = Recorder(writing.fileno(), limit=100, every=0.001)
    recorder.start()

    longest = 0.0
    for number in range(20_000):  # 1.2 MB of rows for a pipe that holds 64 KB
        before = time.perf_counter()
        recorder.record(row(number))
        longest = max(longest, time.perf_counter() - before)
    before = time.perf_counter()
    recorder.close(timeout=0.05)
    closing = time.perf_counter() - before
    dropped = recorder.dropped
    reading.close()  # lets the writer go
    recorder.close(timeout=SOON)

    assert closing < 1
    assert longest < 0.5
    assert dropped > 10_000


def test_what_a_slow_reader_gets_are_whole_rows_and_the_rest_is_counted(pipe: tuple[FileIO, FileIO]) -> None:
    reading, writing = pipe
    recorder = Recorder(writing.fileno(), limit=100, every=0.001)
    recorder.start()
    for number in range(20_000):
        recorder.record(row(number))
    received = bytearray()
    reader = threading.Thread(target=read_to_the_end, args=(reading.fileno(), received))

    reader.start()
    recorder.close(timeout=SOON)
    writing.close()
    reader.join(SOON)

    written = [json.loads(line) for line in received.splitlines()]
    assert len(written) + recorder.dropped == 20_000
    assert recorder.dropped > 0


def test_a_pipe_that_does_not_block_is_waited_for_by_the_writer_alone(pipe: tuple[FileIO, FileIO]) -> None:
    reading, writing = pipe
    os.set_blocking(writing.fileno(), False)
    recorder = Recorder(writing.fileno())
    recorder.start()
    received = bytearray()
    reader = threading.Thread(target=read_to_the_end, args=(reading.fileno(), received))
    for number in range(5_000):
        recorder.record(row(number))

    reader.start()
    recorder.close(timeout=SOON)
    writing.close()
    reader.join(SOON)

    assert [json.loads(line)["request_id"] for line in received.splitlines()] == [str(n) for n in range(5_000)]


def test_no_write_to_a_pipe_is_larger_than_it_takes_in_one_piece(pipe: tuple[FileIO, FileIO]) -> None:
    reading, writing = pipe
    recorder = Recorder(writing.fileno())
    for number in range(200):
        recorder.record(row(number))

    recorder.start()
    recorder.close()

    # Pieces end at a line's end, so lines of several writers cannot mix.
    received = os.read(reading.fileno(), 65_536)
    assert len(received) > select.PIPE_BUF
    assert len(received.splitlines()) == 200


def test_a_reader_that_left_costs_rows_and_is_reported_once(
    pipe: tuple[FileIO, FileIO], caplog: pytest.LogCaptureFixture
) -> None:
    reading, writing = pipe
    reading.close()
    recorder = Recorder(writing.fileno())
    recorder.start()

    for number in range(3_000):
        recorder.record(row(number))
    recorder.close()

    assert recorder.dropped == 3_000
    assert [record.message for record in caplog.records] == [
        "request log: Broken pipe; rows are dropped until it can be written"
    ]


def test_a_full_disk_costs_rows_and_nothing_else() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    recorder = Recorder(full)
    recorder.start()

    recorder.record(row(1))
    recorder.close()
    os.close(full)

    assert recorder.dropped == 1


def test_a_disk_that_has_room_again_starts_on_a_new_line(tmp_path: Path) -> None:
    log = tmp_path / "requests.log"
    recorder = Recorder(log, every=0.001)
    for number in range(100):
        recorder.record(row(number))

    with files_end_at(1_000):
        recorder.start()
        wait_until(lambda: recorder.dropped > 0)
    recorder.record(row(100))
    recorder.close()

    *whole, torn, last = log.read_bytes().splitlines()
    assert [json.loads(line)["request_id"] for line in whole] == [str(n) for n in range(len(whole))]
    assert not torn.endswith(b"}")
    assert json.loads(last)["request_id"] == "100"
    assert len(whole) + recorder.dropped == 100


def test_a_row_that_is_no_json_costs_itself_only(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "requests.log")
    recorder.record(row(1))
    recorder.record(Record(time=0.0, request_id="2", model="\ud800"))
    recorder.record(row(3))

    recorder.start()
    recorder.close()

    assert [written["request_id"] for written in rows(tmp_path / "requests.log")] == ["1", "3"]
    assert recorder.dropped == 1


def test_a_hit_is_counted_with_the_tokens_it_saved() -> None:
    metrics = Metrics()

    observe(
        metrics,
        Record(
            time=0.0,
            request_id="r1",
            endpoint="faq",
            model="gpt-4o",
            status=200,
            cache="semantic",
            similarity=0.97,
            seconds=0.002,
            overhead_us=70,
            tokens_saved=46,
        ),
    )

    lines = exposed(metrics)
    assert (
        lines['keepgate_requests_total{cache="semantic",endpoint="faq",model="gpt-4o",status="200",upstream=""}'] == 1
    )
    assert lines['keepgate_request_seconds_sum{cache="semantic",endpoint="faq"}'] == 0.002
    assert lines['keepgate_overhead_seconds_bucket{cache="semantic",endpoint="faq",le="5e-05"}'] == 0
    assert lines['keepgate_overhead_seconds_bucket{cache="semantic",endpoint="faq",le="0.0001"}'] == 1
    assert lines['keepgate_tokens_saved_total{endpoint="faq",model="gpt-4o",tier="semantic"}'] == 46
    assert lines['keepgate_cache_similarity_bucket{endpoint="faq",le="0.96",result="hit"}'] == 0
    assert lines['keepgate_cache_similarity_bucket{endpoint="faq",le="0.97",result="hit"}'] == 1
    assert not [line for line in lines if line.startswith("keepgate_time_to_first_token_seconds_count")]


def test_near_misses_and_shadow_hits_are_told_from_hits() -> None:
    metrics = Metrics()

    observe(metrics, Record(time=0.0, request_id="r1", status=200, cache="miss", similarity=0.8))
    observe(metrics, Record(time=0.0, request_id="r2", status=200, cache="miss", shadow=0.95, first_token_seconds=0.3))

    lines = exposed(metrics)
    assert lines['keepgate_cache_similarity_sum{endpoint="",result="miss"}'] == 0.8
    assert lines['keepgate_cache_similarity_sum{endpoint="",result="shadow"}'] == 0.95
    assert lines['keepgate_time_to_first_token_seconds_sum{cache="miss",endpoint=""}'] == 0.3


@pytest.fixture
def pipe() -> Iterator[tuple[FileIO, FileIO]]:
    reading, writing = os.pipe()
    with FileIO(reading, "r") as reader, FileIO(writing, "w") as writer:
        yield reader, writer


def row(number: int) -> Record:
    return Record(time=1.0, request_id=str(number), status=200)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def exposed(metrics: Metrics) -> dict[str, float]:
    body = render([metrics.snapshot()])[0].decode()
    pairs = [line.rsplit(" ", 1) for line in body.splitlines() if not line.startswith("#")]
    return {series: float(value) for series, value in pairs}


def read_to_the_end(descriptor: int, received: bytearray) -> None:
    while part := os.read(descriptor, 65_536):
        received += part


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """Writes beyond `size` bytes fail after a part, as on a disk that fills up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_two_processes_that_find_a_grown_file_at_once_keep_what_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "lookups.jsonl"
    file.write_bytes(b'{"old": 1}\n' * 1_000)
    one, other = (Recorder(file, most=10_000) for _ in range(2))
    replace = Path.replace
    once = iter([True])

    def between(source: Path, target: Path) -> Path:
        if next(once, False):
            other.start()
            other.record(Record(time=2.0, request_id="other"))
            other.close()
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", between)
    one.start()
    one.record(Record(time=1.0, request_id="one"))
    one.close(timeout=SOON)

    kept = (tmp_path / "lookups.1.jsonl").read_bytes() + file.read_bytes()
    assert kept.count(b'{"old": 1}\n') == 1_000
    assert kept.count(b'"request_id"') == 2
