"""Models fetched from a hub on loopback: what is asked for, checked, kept, and said when it fails."""

import asyncio
import errno
import hashlib
import io
import json
import socket
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.embedding import hub as hub_module
from backends.embedding import minilm
from backends.embedding.hub import HubModel
from backends.embedding.onnx import OnnxEmbedder
from models.errors import BackendError, ConfigError
from tests.support.encoders import minilm_files, minilm_graph, table, tiny_files, tiny_graph
from tests.support.fake_hub import FakeHub, fake_hub

NAME = "acme/tiny-encoder"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    for name in ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub_module, "_PAUSE", 0.0)
    with fake_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


async def row(embedder: OnnxEmbedder, text: str = "a b") -> Any:
    await embedder.load()
    try:
        return (await embedder.embed([text], role="query"))[0]
    finally:
        await embedder.close()


def in_cache(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern))


async def test_a_name_on_the_hub_becomes_vectors(hub: FakeHub, tmp_path: Path) -> None:
    commit = hub.add(NAME, tiny_files())

    embedder = OnnxEmbedder(model=NAME, cache=tmp_path)
    before = [path for path in hub.paths if path.endswith(".onnx")]
    vector = await row(embedder)

    mean = table()[[2, 4, 5, 3]].mean(axis=0)
    assert vector == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)
    assert embedder.revision == f"{NAME}@{commit[:12]}/onnx/model.onnx/1"
    assert embedder.dimensions == 4
    assert before == []  # known before the weights are fetched


async def test_minilm_from_the_hub_is_the_packaged_one_up_to_its_rounding(hub: FakeHub, tmp_path: Path) -> None:
    files = {name: content for name, content in minilm_files().items() if not name.endswith(".safetensors")}
    hub.add("sentence-transformers/all-MiniLM-L6-v2", files | {"onnx/model.onnx": minilm_graph()})
    packaged = OnnxEmbedder()

    fetched = OnnxEmbedder(model="sentence-transformers/all-MiniLM-L6-v2", cache=tmp_path)

    assert (
        float(await row(fetched, "How do I reset my password?") @ await row(packaged, "How do I reset my password?"))
        > 0.98
    )
    assert packaged.revision == minilm.REVISION != fetched.revision


async def test_what_is_kept_needs_no_hub(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(NAME, tiny_files())
    first = await row(OnnxEmbedder(model=NAME, cache=tmp_path))
    asked = len(hub.requests)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    again = await row(OnnxEmbedder(model=NAME, cache=tmp_path))

    assert again.tobytes() == first.tobytes()
    assert len(hub.requests) == asked


def test_a_branch_that_moves_on_is_not_followed(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(NAME, tiny_files())
    before = OnnxEmbedder(model=NAME, cache=tmp_path).revision

    moved = hub.add(NAME, tiny_files(window=8))

    assert OnnxEmbedder(model=NAME, cache=tmp_path).revision == before
    assert moved[:12] in OnnxEmbedder(model=NAME, revision=moved, cache=tmp_path).revision
    assert moved[:12] in OnnxEmbedder(model=NAME, cache=tmp_path / "another machine").revision


def test_a_tag_a_branch_and_a_commit_are_revisions(hub: FakeHub, tmp_path: Path) -> None:
    commit = hub.add(NAME, tiny_files(), branch="refs/pr/1")
    hub.add(NAME, tiny_files(window=8))

    revisions = {OnnxEmbedder(model=NAME, revision=one, cache=tmp_path).revision for one in ("refs/pr/1", commit)}

    assert revisions == {f"{NAME}@{commit[:12]}/onnx/model.onnx/1"}
    assert any("/revision/refs%2Fpr%2F1?" in path for path in hub.paths)


async def test_external_data_and_a_tokenizer_beside_the_graph_come_along(hub: FakeHub, tmp_path: Path) -> None:
    files = tiny_files() | {"onnx/model.onnx_data": b"weights", "README.md": b"x", "model.safetensors": bytes(5000)}
    files["onnx/tokenizer.json"] = files.pop("tokenizer.json")
    hub.add(NAME, files)

    await row(OnnxEmbedder(model=NAME, cache=tmp_path))

    fetched = {path.rpartition("/")[2] for path in hub.paths if "/resolve/" in path}
    assert {"model.onnx", "model.onnx_data", "tokenizer.json"} <= fetched
    assert not {"README.md", "model.safetensors"} & fetched


@pytest.mark.parametrize("file", [None, "onnx/model_int8.onnx"])
def test_a_model_without_the_graph_says_what_there_is(hub: FakeHub, tmp_path: Path, file: str | None) -> None:
    hub.add(NAME, tiny_files(place="elsewhere/encoder.onnx"))

    with pytest.raises(ConfigError, match=r"cache\.embedder\.file: .* there is elsewhere/encoder\.onnx"):
        OnnxEmbedder(model=NAME, file=file, cache=tmp_path)


def test_a_model_without_any_graph_points_to_the_other_kind(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(NAME, {"config.json": b"{}", "model.safetensors": b"x"})

    with pytest.raises(ConfigError, match="use kind: sentence-transformers"):
        OnnxEmbedder(model=NAME, cache=tmp_path)


def test_a_model_that_does_not_say_its_dimensions_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(NAME, {"config.json": b"{}", "onnx/model.onnx": tiny_graph(), "tokenizer.json": b"{}"})

    with pytest.raises(ConfigError, match="do not say its dimensions"):
        OnnxEmbedder(model=NAME, cache=tmp_path)


@pytest.mark.parametrize("revision", [None, "v2"])
def test_a_model_that_the_hub_does_not_have_says_what_to_check(
    hub: FakeHub, tmp_path: Path, revision: str | None
) -> None:
    if revision is not None:
        hub.add(NAME, tiny_files())

    with pytest.raises(ConfigError, match=r"cache\.embedder\.model: .*status 404.*HF_TOKEN") as raised:
        OnnxEmbedder(model=NAME, revision=revision, cache=tmp_path)

    assert NAME in str(raised.value)
    assert len(hub.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_trouble_that_passes_is_waited_out(hub: FakeHub, tmp_path: Path, status: int) -> None:
    hub.add(NAME, tiny_files())
    hub.failures, hub.status = 2, status

    assert (await row(OnnxEmbedder(model=NAME, cache=tmp_path))).shape == (4,)


def test_trouble_that_stays_says_what_to_do_and_can_be_tried_again(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(NAME, tiny_files())
    hub.failures = 3

    with pytest.raises(BackendError, match=r"status 503.*cache\.embedder\.path.*HF_ENDPOINT"):
        OnnxEmbedder(model=NAME, cache=tmp_path)

    assert OnnxEmbedder(model=NAME, cache=tmp_path).dimensions == 4


def test_without_a_network_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "_PAUSE", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

    with pytest.raises(BackendError, match=r"cannot be fetched .*refused.*cache\.embedder\.path"):
        OnnxEmbedder(model=NAME, endpoint=f"http://127.0.0.1:{port}", cache=tmp_path)


def test_a_hub_that_does_not_answer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "_PAUSE", 0.0)
    monkeypatch.setattr(hub_module, "_TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"

        with pytest.raises(BackendError, match="timed out"):
            OnnxEmbedder(model=NAME, endpoint=address, cache=tmp_path)


async def test_a_download_that_was_cut_goes_on_where_it_stopped(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(NAME, tiny_files() | {"onnx/model.onnx_data": bytes(range(256)) * 200})
    embedder = OnnxEmbedder(model=NAME, cache=tmp_path)
    hub.cut = 700

    await row(embedder)

    ranges = [headers.get("range") for path, headers in hub.requests if "/stored/" in path]
    assert "bytes=700-" in ranges
    assert not in_cache(tmp_path, ".*.part")


@pytest.mark.parametrize("bare", [False, True])
async def test_a_storage_that_cannot_resume_is_asked_for_everything(hub: FakeHub, tmp_path: Path, bare: bool) -> None:
    hub.add(NAME, tiny_files() | {"onnx/model.onnx_data": bytes(range(256)) * 200})
    hub.resumes, hub.bare = False, bare
    embedder = OnnxEmbedder(model=NAME, cache=tmp_path)
    hub.cut = 700

    await row(embedder)

    (kept,) = in_cache(tmp_path, "*/onnx/model.onnx_data")
    assert kept.read_bytes() == bytes(range(256)) * 200


async def test_a_file_longer_than_listed_that_was_left_behind_is_fetched_anew(hub: FakeHub, tmp_path: Path) -> None:
    commit = hub.add(NAME, tiny_files())
    embedder = OnnxEmbedder(model=NAME, cache=tmp_path)
    hub.spoiled = {"onnx/model.onnx"}
    with pytest.raises(BackendError, match="did not arrive as the hub lists it"):
        await embedder.load()

    hub.spoiled = set()
    assert (await row(embedder)).shape == (4,)
    assert commit[:12] in embedder.revision


async def test_a_model_damaged_on_disk_is_fetched_anew(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(NAME, tiny_files())
    first = await row(OnnxEmbedder(model=NAME, cache=tmp_path))
    (graph,) = in_cache(tmp_path, "*/onnx/model.onnx")
    graph.write_bytes(graph.read_bytes()[:-10])

    assert (await row(OnnxEmbedder(model=NAME, cache=tmp_path))).tobytes() == first.tobytes()


async def test_the_token_goes_to_the_hub_and_never_to_its_storage(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret\n")
    hub.add(NAME, tiny_files())

    await row(OnnxEmbedder(model=NAME, cache=tmp_path))

    told = {("/stored/" in path, headers.get("authorization")) for path, headers in hub.requests}
    assert told == {(False, "Bearer hf_secret"), (True, None)}


def test_a_redirect_that_gives_up_https_is_not_followed() -> None:
    redirects = hub_module._Redirects("https://127.0.0.1", "")
    request = urllib.request.Request("https://127.0.0.1/a")

    with pytest.raises(BackendError, match="without https"):
        redirects.redirect_request(request, io.BytesIO(), 302, "Found", Message(), "http://127.0.0.1/b")


async def test_a_model_beyond_the_limit_is_not_begun(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, tiny_files() | {"onnx/model.onnx_data": bytes(20_000)})
    embedder = OnnxEmbedder(model=NAME, cache=tmp_path)
    monkeypatch.setattr(hub_module, "_MOST_BYTES", 10_000)

    with pytest.raises(BackendError, match="more than the 10,000 that are fetched"):
        await embedder.load()

    assert not any("onnx" in path for path in hub.paths)


async def test_a_hub_that_sends_more_than_it_lists_is_stopped(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.bare = True
    hub.add(NAME, tiny_files() | {"onnx/model.onnx_data": bytes(20_000)})
    embedder = OnnxEmbedder(model=NAME, cache=tmp_path)
    monkeypatch.setattr(hub_module, "_MOST_BYTES", 10_000)

    with pytest.raises(BackendError, match="sends more"):
        await embedder.load()


@pytest.mark.parametrize(
    "listing",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"sha": "main", "siblings": []}',
        b'{"sha": "../../etc", "siblings": []}',
        b'{"siblings": []}',
        b'{"sha": 7, "siblings": [{"rfilename": 7}]}',
        b"x" * 5_000_000,
    ],
)
def test_a_hub_that_speaks_otherwise_is_a_backend_error(hub: FakeHub, tmp_path: Path, listing: bytes) -> None:
    hub.listing = listing

    with pytest.raises(BackendError):
        HubModel(NAME, cache=tmp_path)

    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_files_that_would_leave_the_folder_are_not_taken(hub: FakeHub, tmp_path: Path) -> None:
    names = ["../config.json", "/etc/passwd", "a/../../b.onnx", "a//b.onnx", ".hidden", "config.json\n", "model.onnx"]
    listed = {
        "sha": hashlib.sha1(b"", usedforsecurity=False).hexdigest(),
        "siblings": [{"rfilename": n} for n in names],
    }
    hub.listing = json.dumps(listed).encode()

    model = HubModel(NAME, cache=tmp_path)

    assert list(model.files) == ["model.onnx"]


@pytest.mark.parametrize(
    ("name", "revision", "key"),
    [
        ("../../etc", None, "model"),
        ("acme/..", None, "model"),
        ("acme/a/b", None, "model"),
        ("acme/a?b", None, "model"),
        ("", None, "model"),
        (NAME, "..", "revision"),
        (NAME, "a/../b", "revision"),
        (NAME, "a b", "revision"),
        (NAME, "\ud83e", "revision"),
    ],
)
def test_names_that_no_hub_has_are_refused_before_anything_is_asked(
    hub: FakeHub, tmp_path: Path, name: str, revision: str | None, key: str
) -> None:
    with pytest.raises(ConfigError, match=rf"cache\.embedder\.{key}: "):
        HubModel(name, revision=revision, cache=tmp_path)

    assert hub.requests == []


@pytest.mark.parametrize("endpoint", ["ftp://127.0.0.1", "127.0.0.1", "http://me:secret@127.0.0.1"])
def test_an_endpoint_that_cannot_work_is_a_configuration_error(
    tmp_path: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)

    with pytest.raises(ConfigError, match="HF_ENDPOINT") as raised:
        HubModel(NAME, cache=tmp_path)

    assert "secret" not in str(raised.value)


def test_a_cache_without_room_says_so(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(NAME, tiny_files())

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub_module._Line, "_copy", full)

    with pytest.raises(BackendError, match="No space left on device"):
        HubModel(NAME, cache=tmp_path)


async def test_many_who_begin_at_once_fetch_once(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(NAME, tiny_files())

    def made() -> OnnxEmbedder:
        return OnnxEmbedder(model=NAME, cache=tmp_path)

    embedders = await asyncio.gather(*(asyncio.to_thread(made) for _ in range(4)))
    await asyncio.gather(*(embedder.load() for embedder in embedders))
    await asyncio.gather(*(embedder.close() for embedder in embedders))

    assert sum(path.startswith("/api/") for path in hub.paths) == 1
    assert sum("/resolve/" in path and path.endswith("model.onnx") for path in hub.paths) == 1
