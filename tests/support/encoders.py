"""Sentence encoders laid out as on a hub: MiniLM's own files, and tiny ONNX graphs that a test can calculate."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

from backends.embedding import minilm
from backends.embedding.bert_graph import graph

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "query", "passage", ":", "Hi", "hi"]


@lru_cache(maxsize=1)
def minilm_files() -> dict[str, bytes]:
    """As sentence-transformers/all-MiniLM-L6-v2 has them, without the README; by path."""
    folder = minilm.source()
    files = [file for file in folder.rglob("*") if file.is_file() and file.suffix in (".json", ".txt", ".safetensors")]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(files)}


@lru_cache(maxsize=1)
def minilm_graph() -> bytes:
    """In fp32, with the mean as its only output."""
    return graph(load_file(minilm.source() / "model.safetensors"), window=minilm.WINDOW, quantized=False)


def tokenizer(*, truncation: int | None = None) -> bytes:
    """Words of `WORDS` between blanks, in [CLS] and [SEP]."""
    special = [{"id": at, "content": word, "special": True, **_PLAIN} for at, word in enumerate(WORDS[:4])]
    frame = [{"SpecialToken": {"id": name, "type_id": 0}} for name in ("[CLS]", "[SEP]")]
    return json.dumps(
        {
            "version": "1.0",
            "truncation": truncation
            and {"max_length": truncation, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
            "padding": None,
            "added_tokens": special,
            "normalizer": None,
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [frame[0], {"Sequence": {"id": "A", "type_id": 0}}, frame[1]],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {
                    name: {"id": name, "ids": [WORDS.index(name)], "tokens": [name]} for name in ("[CLS]", "[SEP]")
                },
            },
            "decoder": None,
            "model": {"type": "WordLevel", "vocab": {word: at for at, word in enumerate(WORDS)}, "unk_token": "[UNK]"},
        }
    ).encode()


_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def table() -> np.ndarray[Any, np.dtype[np.float32]]:
    """A vector [4] for each of `WORDS`: its states before and after it are the same."""
    return np.random.default_rng(7).standard_normal((len(WORDS), 4)).astype(np.float32)


def tiny_graph(
    *,
    inputs: Mapping[str, int] | None = None,
    outputs: Sequence[str] = ("last_hidden_state",),
) -> bytes:
    """Looks each token up in `table`. `inputs` are names with their element types.

    An output `sentence_embedding` is the first token's vector doubled in length
    to [8], `pooler_output` the last token's; any other is the token states.
    """
    asked = inputs or {"input_ids": TensorProto.INT64, "attention_mask": TensorProto.INT64}
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["states"])]
    constants = [numpy_helper.from_array(table(), "table")]
    # What is asked for counts: a zero of each is added to the states.
    last = "states"
    for name in asked:
        if name != "input_ids":
            nodes += [
                helper.make_node("Cast", [name], [f"{name}_floats"], to=TensorProto.FLOAT),
                helper.make_node("Mul", [f"{name}_floats", "zero"], [f"{name}_nothing"]),
                helper.make_node("Unsqueeze", [f"{name}_nothing", "last_axis"], [f"{name}_column"]),
                helper.make_node("Add", [last, f"{name}_column"], [f"{name}_states"]),
            ]
            last = f"{name}_states"
    constants += [numpy_helper.from_array(np.zeros(1, np.float32), "zero")]
    constants += [numpy_helper.from_array(np.array([-1]), "last_axis")]
    constants += [numpy_helper.from_array(np.array(0), "first"), numpy_helper.from_array(np.array(-1), "end")]
    told = []
    for name in outputs:
        if name == "sentence_embedding":
            nodes += [
                helper.make_node("Gather", [last, "first"], ["first_states"], axis=1),
                helper.make_node("Concat", ["first_states", "first_states"], [name], axis=-1),
            ]
            told.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 8]))
        elif name == "pooler_output":
            nodes.append(helper.make_node("Gather", [last, "end"], [name], axis=1))
            told.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]))
        else:
            nodes.append(helper.make_node("Identity", [last], [name]))
            told.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "tokens", 4]))
    drawn = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, kind, ["batch", "tokens"]) for name, kind in asked.items()],
        told,
        constants,
    )
    return bytes(
        helper.make_model(drawn, opset_imports=[helper.make_opsetid("", 20)], ir_version=9).SerializeToString()
    )


def tiny_files(
    *,
    pooling: Mapping[str, object] | None = None,
    prompts: Mapping[str, str] | None = None,
    modules: Sequence[str] = ("Transformer", "Pooling", "Normalize"),
    window: int = 16,
    place: str = "onnx/model.onnx",
    model: bytes | None = None,
    **more: object,
) -> dict[str, bytes]:
    """A whole model; `more` are other JSON files by their path with __ for / and without the ending."""
    files: dict[str, object] = {
        "config.json": {"model_type": "bert", "hidden_size": 4, "max_position_embeddings": 512},
        "sentence_bert_config.json": {"max_seq_length": window, "do_lower_case": False},
        "modules.json": [
            {
                "idx": at,
                "name": str(at),
                "path": "" if at == 0 else f"{at}_{kind}",
                "type": f"sentence_transformers.models.{kind}",
            }
            for at, kind in enumerate(modules)
        ],
        "1_Pooling/config.json": pooling or {"word_embedding_dimension": 4, "pooling_mode_mean_tokens": True},
        **{f"{name.replace('__', '/')}.json": content for name, content in more.items()},
    }
    if prompts is not None:
        files["config_sentence_transformers.json"] = {"prompts": prompts, "default_prompt_name": None}
    written = {name: json.dumps(content).encode() for name, content in files.items()}
    return written | {"tokenizer.json": tokenizer(), place: model or tiny_graph()}


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder
