"""Cross-encoders for tests: MiniLM's weights with a head that nobody trained, and graphs of a few nodes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

from backends.embedding.minilm import source
from benchmarks.cross_encoder_graph import HEAD, cross_encoder

WINDOW = 64


def weights() -> dict[str, NDArray[np.float32]]:
    """The packaged encoder with a random head, the same at each call."""
    draw = np.random.default_rng(1)
    found = dict(load_file(source() / "model.safetensors"))
    for name, (outer, inner) in HEAD.items():
        found[f"{name}.weight"] = (draw.standard_normal((outer, inner)) / inner**0.5).astype(np.float32)
        found[f"{name}.bias"] = np.zeros(outer, np.float32)
    return found


def untrained(folder: Path) -> Path:
    """A folder as benchmarks/train_cross_encoder.py writes it, without having trained."""
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(cross_encoder(weights(), window=WINDOW, quantized=True))
    return _completed(folder)


def small(folder: Path, *, inputs: tuple[str, ...], outputs: int, scale: float = 0.001) -> Path:
    """A folder with a graph whose outputs are 0, `scale` times the sum of the ids, twice that, and so on (of one: the
    sum). It reads whatever `inputs` it has."""
    folder.mkdir(parents=True)
    nodes, total = [], ""
    for number, name in enumerate(inputs):
        nodes.append(helper.make_node("Cast", [name], [f"floats{number}"], to=1))
        nodes.append(helper.make_node("ReduceSum", [f"floats{number}"], [f"sum{number}"], keepdims=1))
        # Of the ids alone; the others are read, and count for nothing.
        nodes.append(
            helper.make_node("Mul", [f"sum{number}", "one" if name == "input_ids" else "none"], [f"part{number}"])
        )
        if total:
            nodes.append(helper.make_node("Add", [total, f"part{number}"], [f"total{number}"]))
        total = f"total{number}" if total else f"part{number}"
    steps = np.array([[scale * place for place in (range(outputs) if outputs > 1 else [1])]], np.float32)
    nodes.append(helper.make_node("Mul", [total, "steps"], ["scores"]))
    constants = {"steps": steps, "one": np.array(1.0, np.float32), "none": np.array(0.0, np.float32)}
    drawn = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["pairs", "tokens"]) for name in inputs],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(drawn, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return _completed(folder)


def _completed(folder: Path) -> Path:
    tokenizer: dict[str, Any] = json.loads((source() / "tokenizer.json").read_bytes())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": WINDOW}))
    return folder
