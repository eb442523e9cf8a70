"""Sentence encoders in folders of one's own: their pooling, prompts, window, inputs and outputs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

from backends.embedding import model_cache
from backends.embedding.onnx import OnnxEmbedder
from backends.embedding.recipe import read_recipe
from models.errors import BackendError, ConfigError, TextTooLong
from tests.support.encoders import WORDS, table, tiny_files, tiny_graph, tokenizer, write


async def embedded(folder: Path, *texts: str, role: Any = "query", **options: Any) -> NDArray[np.float32]:
    embedder = OnnxEmbedder(path=folder, cache=folder / "cache", **options)
    await embedder.load()
    try:
        return await embedder.embed(texts, role=role)
    finally:
        await embedder.close()


def states(*words: str) -> NDArray[np.float32]:
    return table()[[WORDS.index(word) for word in ("[CLS]", *words, "[SEP]")]]


def directed(vector: NDArray[np.float32]) -> Any:
    return pytest.approx(vector / np.linalg.norm(vector), abs=1e-6)


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_mean_tokens": True}, states("a", "b").mean(axis=0)),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, states("a", "b")[0]),
        ({"pooling_mode_max_tokens": True}, states("a", "b").max(axis=0)),
        ({"pooling_mode_lasttoken": True}, states("a", "b")[-1]),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, states("a", "b").mean(axis=0)),
        ({"pooling_mode_weightedmean_tokens": True}, np.array([1, 2, 3, 4], np.float32) @ states("a", "b")),
        ({"pooling_mode": "cls", "embedding_dimension": 4}, states("a", "b")[0]),  # as version 6 writes it
        ({"pooling_mode": ["mean"], "embedding_dimension": 4}, states("a", "b").mean(axis=0)),
    ],
)
async def test_token_states_are_pooled_as_the_models_files_say(
    tmp_path: Path, pooling: dict[str, object], expected: NDArray[np.float32]
) -> None:
    folder = write(tmp_path, tiny_files(pooling=pooling))

    (row,) = await embedded(folder, "a b")

    assert row == directed(expected)


async def test_a_folder_that_says_nothing_of_pooling_is_averaged(tmp_path: Path) -> None:
    files = tiny_files(place="model.onnx")
    folder = write(tmp_path, {name: files[name] for name in ("model.onnx", "tokenizer.json", "config.json")})

    (row,) = await embedded(folder, "a b c")

    assert row == directed(states("a", "b", "c").mean(axis=0))


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"pooling": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}}, "pooling by cls and mean"),
        ({"pooling": {"pooling_mode": "attention"}}, "pooling by attention"),
        ({"pooling": {"pooling_mode": "mean", "include_prompt": False}}, "leaves out the prompt"),
        ({"modules": ("Transformer", "Pooling", "CNN")}, "a module CNN"),
        ({"modules": ("Transformer", "Pooling", "Dense"), "2_Dense__config": {"out_features": 8}}, "a layer after"),
    ],
)
async def test_what_cannot_be_done_after_the_graph_is_refused_and_never_left_out(
    tmp_path: Path, changed: dict[str, Any], complaint: str
) -> None:
    folder = write(tmp_path / "states", tiny_files(**changed))
    whole = write(tmp_path / "whole", tiny_files(**changed, model=tiny_graph(outputs=["sentence_embedding"])))

    with pytest.raises(BackendError, match=f"{complaint}.*kind: sentence-transformers"):
        await embedded(folder, "a")

    (row,) = await embedded(whole, "a")  # a graph that does it itself will do
    assert row == directed(np.tile(states("a")[0], 2))


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (["pooler_output", "last_hidden_state"], states("a").mean(axis=0)),
        (["something", "token_embeddings"], states("a").mean(axis=0)),
        (["something"], states("a").mean(axis=0)),
        (["last_hidden_state", "sentence_embedding"], np.tile(states("a")[0], 2)),
        (["pooler_output"], states("a")[-1]),
    ],
)
async def test_the_output_that_means_most_is_taken(
    tmp_path: Path, outputs: list[str], expected: NDArray[np.float32]
) -> None:
    folder = write(tmp_path, tiny_files(model=tiny_graph(outputs=outputs)))

    (row,) = await embedded(folder, "a")

    assert row == directed(expected)


@pytest.mark.parametrize(
    "inputs",
    [
        {"input_ids": TensorProto.INT64},
        {"input_ids": TensorProto.INT32, "attention_mask": TensorProto.INT32},
        dict.fromkeys(("input_ids", "attention_mask", "token_type_ids", "position_ids"), TensorProto.INT64),
    ],
)
async def test_a_graph_is_given_what_it_asks_for(tmp_path: Path, inputs: dict[str, int]) -> None:
    folder = write(tmp_path, tiny_files(model=tiny_graph(inputs=inputs)))

    (row,) = await embedded(folder, "a c")

    assert row == directed(states("a", "c").mean(axis=0))


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        ({"input_ids": TensorProto.INT64, "task_id": TensorProto.INT64}, "asks for task_id"),
        ({"input_ids": TensorProto.INT64, "attention_mask": TensorProto.FLOAT}, "asks for attention_mask"),
    ],
)
async def test_a_graph_that_asks_for_what_no_text_has_is_refused(
    tmp_path: Path, inputs: dict[str, int], complaint: str
) -> None:
    folder = write(tmp_path, tiny_files(model=tiny_graph(inputs=inputs)))

    with pytest.raises(BackendError, match=f"no sentence encoder: its graph {complaint}"):
        await embedded(folder, "a")


async def test_each_role_has_the_prompt_that_the_model_was_trained_with(tmp_path: Path) -> None:
    folder = write(tmp_path, tiny_files(prompts={"query": "query : ", "passage": "passage : "}))

    (question,), (document,) = [await embedded(folder, "a", role=role) for role in ("query", "document")]

    assert question == directed(states("query", ":", "a").mean(axis=0))
    assert document == directed(states("passage", ":", "a").mean(axis=0))


@pytest.mark.parametrize(
    ("names", "query", "document"),
    [
        ({"prompts": {"query": "q: ", "document": "d: ", "passage": "p: "}}, "q: ", "d: "),
        ({"prompts": {"corpus": "c: "}}, "", "c: "),
        ({"prompts": {"sts": "s: ", "query": "q: "}, "default_prompt_name": "sts"}, "q: ", "s: "),
        ({"prompts": {"sts": "s: "}, "default_prompt_name": None}, "", ""),
        ({"prompts": None}, "", ""),
        ({"prompts": {"query": 7}}, "", ""),
        ({}, "", ""),
    ],
)
def test_prompts_are_found_by_the_names_models_give_them(
    tmp_path: Path, names: dict[str, object], query: str, document: str
) -> None:
    recipe = read_recipe(write(tmp_path, tiny_files(config_sentence_transformers=names)))

    assert [recipe.worded("x", role) for role in ("query", "document")] == [f"{query}x", f"{document}x"]


async def test_the_prompt_counts_towards_the_window(tmp_path: Path) -> None:
    folder = write(tmp_path, tiny_files(window=6, prompts={"query": "query : "}))

    await embedded(folder, "a b")
    await embedded(folder, "a b c", role="document")
    with pytest.raises(TextTooLong, match="7 tokens are beyond a window of 6"):
        await embedded(folder, "a b c")


async def test_a_model_that_wants_small_letters_gets_them(tmp_path: Path) -> None:
    files = tiny_files(sentence_bert_config={"max_seq_length": 16, "do_lower_case": True})

    (row,) = await embedded(write(tmp_path, files), "Hi")

    assert row == directed(states("hi").mean(axis=0))


@pytest.mark.parametrize(
    ("files", "window"),
    [
        ({"sentence_bert_config": {"max_seq_length": 128}, "tokenizer_config": {"model_max_length": 64}}, 128),
        ({"sentence_bert_config": {}, "tokenizer_config": {"model_max_length": 64}}, 64),  # as version 6 writes it
        ({"sentence_bert_config": {"max_seq_length": None}, "tokenizer_config": {"model_max_length": 10**30}}, 512),
        ({"sentence_bert_config": {}, "config": {"model_type": "roberta", "max_position_embeddings": 514}}, 512),
        ({"sentence_bert_config": {}, "config": {"hidden_size": 4}}, None),
    ],
)
def test_the_window_is_the_one_the_model_was_trained_with(
    tmp_path: Path, files: dict[str, Any], window: int | None
) -> None:
    assert read_recipe(write(tmp_path, tiny_files(**files))).window == window


async def test_a_window_that_only_the_tokenizer_knows_is_kept(tmp_path: Path) -> None:
    files = tiny_files(sentence_bert_config={}, config={"hidden_size": 4}) | {"tokenizer.json": tokenizer(truncation=5)}

    with pytest.raises(TextTooLong, match="window of 5"):
        await embedded(write(tmp_path, files), "a b c a")


@pytest.mark.parametrize("changed", ["onnx/model.onnx", "tokenizer.json", "1_Pooling/config.json", "modules.json"])
def test_a_change_to_any_file_that_counts_is_another_revision(tmp_path: Path, changed: str) -> None:
    folder = write(tmp_path / "model", tiny_files())
    before = OnnxEmbedder(path=folder, cache=tmp_path).revision

    if changed == "onnx/model.onnx":
        (folder / changed).write_bytes(tiny_graph(outputs=["pooler_output", "last_hidden_state"]))
    else:
        (folder / changed).write_bytes((folder / changed).read_bytes() + b"\n")

    assert before.startswith("model@")
    assert OnnxEmbedder(path=folder, cache=tmp_path).revision != before


def test_a_graph_can_be_chosen_by_its_place(tmp_path: Path) -> None:
    files = tiny_files() | {"onnx/model_quantized.onnx": tiny_graph(outputs=["sentence_embedding"])}
    folder = write(tmp_path / "model", files)

    usual = OnnxEmbedder(path=folder, cache=tmp_path)
    chosen = OnnxEmbedder(path=folder, file="onnx/model_quantized.onnx", cache=tmp_path)

    assert (usual.dimensions, chosen.dimensions) == (4, 8)
    assert usual.revision != chosen.revision


@pytest.mark.parametrize("name", ["config.json", "modules.json", "1_Pooling/config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"7", b"\xff\xfe", b"[" * 100_000])
def test_a_folder_with_a_damaged_file_is_a_configuration_error(tmp_path: Path, name: str, content: bytes) -> None:
    folder = write(tmp_path, tiny_files() | {name: content})

    with pytest.raises(ConfigError, match=r"cache\.embedder"):
        OnnxEmbedder(path=folder, cache=tmp_path / "cache")


def test_modules_outside_the_folder_are_not_read(tmp_path: Path) -> None:
    write(tmp_path / "1_Pooling", {"config.json": b'{"pooling_mode": "attention"}'})
    modules = [{"path": "../1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    files = tiny_files() | {"modules.json": json.dumps(modules).encode()}

    recipe = read_recipe(write(tmp_path / "model", files))

    assert recipe.pooling == "mean"


def test_large_files_are_read_once_until_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(bytes(2 * 1024 * 1024))
    read: list[Path] = []

    def counted(path: Path, wanted: Any = model_cache.sha256) -> str:
        read.append(path)
        return str(wanted(path))

    monkeypatch.setattr(model_cache, "sha256", counted)
    first, again = (model_cache.content_mark([file], cache=tmp_path / "cache") for _ in range(2))
    file.write_bytes(bytes(2 * 1024 * 1024 - 1) + b"\x01")
    changed = model_cache.content_mark([file], cache=tmp_path / "cache")

    assert first == again != changed
    assert len(read) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"7", b'{"a": 7}'])
def test_a_damaged_list_of_hashes_costs_the_reading_only(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(bytes(2 * 1024 * 1024))
    expected = model_cache.content_mark([file], cache=tmp_path / "cache")
    (tmp_path / "cache" / "hashes.json").write_bytes(content)

    assert model_cache.content_mark([file], cache=tmp_path / "cache") == expected
