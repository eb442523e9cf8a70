"""sentence-transformers with MiniLM's real weights; skipped where the extra is not installed."""

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.embedding import minilm
from backends.embedding.onnx import OnnxEmbedder
from backends.embedding.sentence_transformers import SentenceTransformersEmbedder
from models.errors import BackendError, ConfigError, TextRefused, TextTooLong
from tests.support.encoders import minilm_files, minilm_graph, write
from tests.support.fake_hub import fake_hub

pytest.importorskip(
    "sentence_transformers", reason="the extra is not installed: pip install 'keepgate[sentence-transformers]'"
)

# What the packages warn of about themselves is not ours to mend.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.timeout(300)]

QUESTION = "How do I reset my password?"


@pytest.fixture
async def embedder() -> AsyncIterator[SentenceTransformersEmbedder]:
    embedder = SentenceTransformersEmbedder(path=minilm.source())
    await embedder.load()
    yield embedder
    await embedder.close()


def changed(folder: Path, files: Mapping[str, object]) -> Path:
    """MiniLM with other JSON files."""
    return write(folder, minilm_files() | {name: json.dumps(content).encode() for name, content in files.items()})


async def test_vectors_are_those_of_the_package_itself(embedder: SentenceTransformersEmbedder) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(minilm.source()), device="cpu", local_files_only=True)
    texts = [QUESTION, "hi", "def f(x):\n    return x + 1", "  blanks around  "]

    rows = await embedder.embed(texts, role="query")

    for text, row in zip(texts, rows, strict=True):
        assert row == pytest.approx(model.encode([text], normalize_embeddings=True)[0], abs=1e-6)


async def test_a_graph_in_fp32_and_pytorch_agree(embedder: SentenceTransformersEmbedder, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", minilm_files() | {"model.onnx": minilm_graph()})
    graph = OnnxEmbedder(path=folder, cache=tmp_path)
    await graph.load()
    texts = [QUESTION, "我想买苹果", "what does 🦄 mean?", "word " * 200]

    ours, theirs = [await one.embed(texts, role="query") for one in (graph, embedder)]
    await graph.close()

    assert ours == pytest.approx(theirs, abs=1e-5)


async def test_a_text_beyond_the_window_is_refused_and_never_cut(embedder: SentenceTransformersEmbedder) -> None:
    await embedder.embed(["ox " * 254], role="query")
    with pytest.raises(TextTooLong, match="257 tokens are beyond a window of 256"):
        await embedder.embed(["ox " * 255], role="query")
    with pytest.raises(TextTooLong, match="characters"):
        await embedder.embed(["x" * 100_000], role="query")


async def test_what_is_no_unicode_text_is_refused(embedder: SentenceTransformersEmbedder) -> None:
    with pytest.raises(TextRefused, match="lone surrogate"):
        await embedder.embed(["half a pair: \ud83e"], role="query")


async def test_roles_have_their_prompts_and_no_default_slips_in(tmp_path: Path) -> None:
    prompts = {"query": "query: ", "passage": "passage: ", "sts": "similar: "}
    names = {"prompts": prompts, "default_prompt_name": "sts"}
    embedder = SentenceTransformersEmbedder(
        path=changed(tmp_path / "model", {"config_sentence_transformers.json": names}), cache=tmp_path
    )
    plain = SentenceTransformersEmbedder(path=minilm.source())
    await embedder.load()
    await plain.load()

    query, document = [(await embedder.embed(["x"], role=role))[0] for role in ("query", "document")]
    expected = await plain.embed(["query: x", "passage: x"], role="query")
    await embedder.close()
    await plain.close()

    assert query.tobytes() == expected[0].tobytes()
    assert document.tobytes() == expected[1].tobytes()


async def test_vectors_can_be_cut_to_their_first_numbers(embedder: SentenceTransformersEmbedder) -> None:
    short = SentenceTransformersEmbedder(path=minilm.source(), dimensions=64)
    await short.load()

    row = (await short.embed([QUESTION], role="query"))[0]
    whole = (await embedder.embed([QUESTION], role="query"))[0][:64]
    await short.close()

    assert row == pytest.approx(whole / np.linalg.norm(whole), abs=1e-6)
    assert short.revision != embedder.revision


async def test_more_dimensions_than_the_model_has_say_what_to_set() -> None:
    embedder = SentenceTransformersEmbedder(path=minilm.source(), dimensions=500)
    await embedder.load()

    with pytest.raises(BackendError, match=r"vectors of 384, not of 500: set cache\.embedder\.dimensions"):
        await embedder.embed([QUESTION], role="query")
    await embedder.close()


async def test_a_name_on_the_hub_is_fetched_once_and_without_what_is_not_needed(
    tmp_path: Path, embedder: SentenceTransformersEmbedder
) -> None:
    with fake_hub() as hub:
        others = {"README.md": b"x", "onnx/model.onnx": b"x", "pytorch_model.bin": b"x", "modeling.py": b"raise"}
        commit = hub.add("sentence-transformers/all-MiniLM-L6-v2", {**minilm_files(), **others})
        fetched = SentenceTransformersEmbedder(endpoint=hub.url, cache=tmp_path)
        await fetched.load()
        await fetched.load()
        paths = hub.paths

    row = (await fetched.embed([QUESTION], role="query"))[0]
    await fetched.close()

    assert row.tobytes() == (await embedder.embed([QUESTION], role="query"))[0].tobytes()
    assert fetched.revision == f"sentence-transformers/all-MiniLM-L6-v2@{commit[:12]}/st/1"
    assert not [path for path in paths if path.endswith(tuple(others))]
    assert sum("/stored/" in path and path.endswith("model.safetensors") for path in paths) == 1


async def test_loading_and_embedding_ask_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("something wants the network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    embedder = SentenceTransformersEmbedder(path=minilm.source())

    await embedder.load()
    assert (await embedder.embed(["see https://127.0.0.1/image.png and /etc/passwd"], role="query")).shape == (1, 384)
    await embedder.close()


@pytest.mark.parametrize("content", [b"", b"no weights at all", b"\xff" * 9], ids=["empty", "text", "too large"])
async def test_damaged_weights_are_a_backend_error(tmp_path: Path, content: bytes) -> None:
    folder = write(tmp_path / "model", minilm_files() | {"model.safetensors": content})
    embedder = SentenceTransformersEmbedder(path=folder, cache=tmp_path)

    with pytest.raises(BackendError, match="cannot be loaded"):
        await embedder.load()
    await embedder.close()


async def test_code_in_a_models_folder_is_not_run(tmp_path: Path) -> None:
    modules = [{"idx": 0, "name": "0", "path": "", "type": "mine.Transformer"}]
    folder = changed(tmp_path / "model", {"modules.json": modules})
    write(folder, {"mine.py": f"open({str(tmp_path / 'was here')!r}, 'w')\nclass Transformer: ...".encode()})
    embedder = SentenceTransformersEmbedder(path=folder, cache=tmp_path)

    with pytest.raises(BackendError, match="cannot be loaded"):
        await embedder.load()
    await embedder.close()

    assert not await asyncio.to_thread((tmp_path / "was here").exists)


async def test_many_at_once_get_what_each_gets_alone(embedder: SentenceTransformersEmbedder) -> None:
    texts = [f"{QUESTION} {'really ' * number}" for number in range(20)]
    alone = [(await embedder.embed([text], role="query"))[0].tobytes() for text in texts]

    crowd: list[Any] = await asyncio.gather(*(embedder.embed([text], role="query") for text in texts))

    assert [rows[0].tobytes() for rows in crowd] == alone


def test_nothing_is_imported_until_it_is_loaded() -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from backends.embedding.sentence_transformers import SentenceTransformersEmbedder\n"
        "SentenceTransformersEmbedder(path=Path(sys.argv[1]))\n"
        "print('torch' in sys.modules, 'sentence_transformers' in sys.modules)\n"
    )

    told = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", code, str(minilm.source())], capture_output=True, text=True, check=True, timeout=60
    )

    assert told.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    ("lacking", "problem"),
    [("model.safetensors", "no weights for PyTorch"), ("config.json", "do not say")],
)
def test_a_folder_that_lacks_what_is_needed_is_a_configuration_error(
    tmp_path: Path, lacking: str, problem: str
) -> None:
    files = {
        name: content for name, content in minilm_files().items() if name not in (lacking, "1_Pooling/config.json")
    }

    with pytest.raises(ConfigError, match=rf"cache\.embedder\..*{problem}"):
        SentenceTransformersEmbedder(path=write(tmp_path / "model", files), cache=tmp_path)
