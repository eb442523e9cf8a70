"""The cross-encoder of benchmarks/train_cross_encoder.py as an ONNX graph: MiniLM over both texts, and a small head."""

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from backends.embedding.bert_graph import Drawing, Weights

LAYERS, HEADS, STATE = 6, 12, 384
# Width out and in: over a + b, |a - b| and a * b of the two texts' mean states.
HEAD = {"head.in": (128, 3 * STATE), "head.out": (1, 128)}


def cross_encoder(weights: Weights, *, window: int, quantized: bool) -> bytes:
    """An ONNX model: `input_ids` and `token_type_ids` int64 [1, tokens] to `logits` float32 [1, 1].

    One pair a run, both texts with their special tokens, 0 for the first and 1
    for the second: no mask. The head stays in fp32.
    """
    drawing = Drawing(weights, window=window, quantized=quantized)
    states = _embeddings(drawing)
    for layer in range(LAYERS):
        states = drawing.layer(f"encoder.layer.{layer}", states)
    segments = drawing.node("Cast", ["token_type_ids"], "segments", to=1)
    one = drawing.constant("one", np.array(1.0, np.float32))
    a = _mean(drawing, states, drawing.node("Sub", [one, segments], "first"), "a")
    b = _mean(drawing, states, segments, "b")
    features = [
        drawing.node("Add", [a, b], "sum"),
        drawing.node("Abs", [drawing.node("Sub", [a, b], "difference")], "apart"),
        drawing.node("Mul", [a, b], "product"),
    ]
    drawing.quantized = False
    together = drawing.node("Concat", features, "together", axis=-1)
    inner = drawing.node("Gelu", [drawing.linear("head.in", together, *drawing.dense("head.in"))], "head.active")
    drawing.node("Identity", [drawing.linear("head.out", inner, *drawing.dense("head.out"))], "logits")
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, [1, "tokens"])
        for name in ("input_ids", "token_type_ids")
    ]
    drawn = helper.make_graph(
        drawing.nodes,
        "cross_encoder",
        inputs,
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 1])],
        list(drawing.constants.values()),
    )
    model = helper.make_model(drawn, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return bytes(model.SerializeToString())


def _embeddings(drawing: Drawing) -> str:
    """As the sentence encoder's, with the rows of both segments: what the second one's differ by is added."""
    types = drawing.weights["embeddings.token_type_embeddings.weight"]
    rows: NDArray[np.float32] = np.stack([np.zeros_like(types[0]), types[1] - types[0]])
    by_type = drawing.node("Gather", [drawing.constant("types", rows), "token_type_ids"], "type_states")
    words = drawing.words("input_ids")
    return drawing.norm("embeddings.LayerNorm", drawing.node("Add", [words, by_type], "both"))


def _mean(drawing: Drawing, states: str, chosen: str, name: str) -> str:
    """The mean of the states where `chosen` [1, tokens] is 1: [1, 384]."""
    row = drawing.node("Unsqueeze", [chosen, drawing.constant("middle", np.array([1]))], f"{name}.row")
    total = drawing.node("MatMul", [row, states], f"{name}.total")
    count = drawing.node("ReduceSum", [row, drawing.constant("last", np.array([2]))], f"{name}.count", keepdims=1)
    mean = drawing.node("Div", [total, count], f"{name}.mean")
    return drawing.node("Squeeze", [mean, drawing.constant("middle", np.array([1]))], f"{name}.flat")
