"""The forward pass of MiniLM (a BERT of six layers) as an ONNX graph, in fp32 or int8.

The only module that needs the package `onnx`: import it where a graph is built, not where one is run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

_LAYERS = 6
_HEADS = 12
_HEAD = 32
_DIMENSIONS = _HEADS * _HEAD
_EPSILON = 1e-12
# 7 of 8 bits: on CPUs without VNNI the sum of two products of 8 bits overflows 16, and the vectors would depend on
# the machine. Costs .001 of cosine to fp32 (.994 against .995) and nothing measurable in telling paraphrases apart.
_WEIGHT_TOP = 63

Weights = Mapping[str, NDArray[Any]]


def graph(weights: Weights, *, window: int, quantized: bool) -> bytes:
    """An ONNX model: `input_ids` int64 [1, tokens] to `mean` float32 [1, 384], the mean of the token states.

    There is no attention mask: one text a run needs no padding. Quantised,
    matrices are int8 with a scale for each output channel, the table of words
    int8 with a scale for each word, and activations uint8 with one scale a run.
    """
    drawing = Drawing(weights, window=window, quantized=quantized)
    states = drawing.embeddings("input_ids")
    for layer in range(_LAYERS):
        states = drawing.layer(f"encoder.layer.{layer}", states)
    drawing.node("ReduceMean", [states, drawing.constant("axis", np.array([1]))], "mean", keepdims=0)
    return drawing.serialized()


@dataclass
class Drawing:
    """Nodes and constants of the graph, in the order of BERT's forward pass (Devlin et al. 2019)."""

    weights: Weights
    window: int
    quantized: bool
    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)

    def constant(self, name: str, array: NDArray[Any]) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def node(self, kind: str, inputs: list[str], *outputs: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, list(outputs), **attributes))
        return outputs[0]

    def embeddings(self, ids: str) -> str:
        return self.norm("embeddings.LayerNorm", self.words(ids))

    def words(self, ids: str) -> str:
        """Words and positions, every token of the first segment."""
        table = self.weights["embeddings.word_embeddings.weight"]
        if self.quantized:
            scales = np.abs(table).max(axis=1, keepdims=True) / np.float32(127)
            rows = self.node("Gather", [self.constant("words", _rounded(table, scales)), ids], "word_steps")
            steps = self.node("Cast", [rows], "word_floats", to=1)
            scale = self.node("Gather", [self.constant("word_scales", scales), ids], "word_scale")
            words = self.node("Mul", [steps, scale], "word_states")
        else:
            words = self.node("Gather", [self.constant("words", table), ids], "word_states")
        # The first segment's row is part of the position's.
        positions = self.weights["embeddings.position_embeddings.weight"][: self.window]
        positions = positions + self.weights["embeddings.token_type_embeddings.weight"][0]
        count = self.node("Shape", [ids], "tokens", start=1, end=2)
        begin = self.constant("begin", np.array([0]))
        placed = self.node("Slice", [self.constant("positions", positions), begin, count], "position_states")
        return self.node("Add", [words, placed], "embedded")

    def layer(self, prefix: str, states: str) -> str:
        mixed = self.attention(f"{prefix}.attention", states)
        added = self.node("Add", [mixed, states], f"{prefix}.mixed")
        states = self.norm(f"{prefix}.attention.output.LayerNorm", added)
        inner = self.linear(f"{prefix}.intermediate.dense", states, *self.dense(f"{prefix}.intermediate.dense"))
        active = self.node("Gelu", [inner], f"{prefix}.active")  # the exact one, with erf
        outer = self.linear(f"{prefix}.output.dense", active, *self.dense(f"{prefix}.output.dense"))
        added = self.node("Add", [outer, states], f"{prefix}.added")
        return self.norm(f"{prefix}.output.LayerNorm", added)

    def attention(self, prefix: str, states: str) -> str:
        query, query_bias = self.dense(f"{prefix}.self.query")
        key, key_bias = self.dense(f"{prefix}.self.key")
        value, value_bias = self.dense(f"{prefix}.self.value")
        # One product for all three, with the division by √d in the query's weights: the states are quantised once.
        shrink = np.float32(_HEAD**-0.5)
        matrix = np.concatenate([query * shrink, key, value])
        bias = np.concatenate([query_bias * shrink, key_bias, value_bias])
        together = self.linear(f"{prefix}.qkv", states, matrix, bias)
        self.node("Split", [together], f"{prefix}.q", f"{prefix}.k", f"{prefix}.v", axis=-1, num_outputs=3)
        q = self.heads(f"{prefix}.q", [0, 2, 1, 3])
        k = self.heads(f"{prefix}.k", [0, 2, 3, 1])
        v = self.heads(f"{prefix}.v", [0, 2, 1, 3])
        weights = self.node("Softmax", [self.node("MatMul", [q, k], f"{prefix}.logits")], f"{prefix}.weights", axis=-1)
        context = self.node("MatMul", [weights, v], f"{prefix}.context")
        context = self.node("Transpose", [context], f"{prefix}.by_token", perm=[0, 2, 1, 3])
        flat = self.constant("flat", np.array([0, 0, _DIMENSIONS]))
        context = self.node("Reshape", [context, flat], f"{prefix}.joined")
        return self.linear(f"{prefix}.output.dense", context, *self.dense(f"{prefix}.output.dense"))

    def heads(self, name: str, order: list[int]) -> str:
        shape = self.constant("heads", np.array([0, 0, _HEADS, _HEAD]))
        split = self.node("Reshape", [name, shape], f"{name}.heads")
        return self.node("Transpose", [split], f"{name}.turned", perm=order)

    def dense(self, prefix: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Matrix [out, in] and bias [out]."""
        return self.weights[f"{prefix}.weight"], self.weights[f"{prefix}.bias"]

    def linear(self, name: str, x: str, matrix: NDArray[np.float32], bias: NDArray[np.float32]) -> str:
        if self.quantized:
            scales = np.abs(matrix).max(axis=1, keepdims=True) / np.float32(_WEIGHT_TOP)
            steps = self.constant(f"{name}.matrix", _rounded(matrix, scales).T)
            # Exactly the chain that ONNX Runtime replaces by one kernel.
            self.node("DynamicQuantizeLinear", [x], f"{name}.x", f"{name}.x_scale", f"{name}.x_zero")
            whole = self.node("MatMulInteger", [f"{name}.x", steps, f"{name}.x_zero"], f"{name}.whole")
            floats = self.node("Cast", [whole], f"{name}.floats", to=1)
            scale = self.constant(f"{name}.scales", scales[:, 0])
            scale = self.node("Mul", [f"{name}.x_scale", scale], f"{name}.scale")
            product = self.node("Mul", [floats, scale], f"{name}.product")
        else:
            product = self.node("MatMul", [x, self.constant(f"{name}.matrix", matrix.T)], f"{name}.product")
        return self.node("Add", [product, self.constant(f"{name}.bias", bias)], f"{name}.out")

    def norm(self, prefix: str, x: str) -> str:
        gain = self.constant(f"{prefix}.weight", self.weights[f"{prefix}.weight"])
        bias = self.constant(f"{prefix}.bias", self.weights[f"{prefix}.bias"])
        return self.node("LayerNormalization", [x, gain, bias], f"{prefix}.out", axis=-1, epsilon=_EPSILON)

    def serialized(self) -> bytes:
        drawn = helper.make_graph(
            self.nodes,
            "sentence_encoder",
            [helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "tokens"])],
            [helper.make_tensor_value_info("mean", TensorProto.FLOAT, [1, _DIMENSIONS])],
            list(self.constants.values()),
        )
        # Opset 20 is the first with Gelu.
        model = helper.make_model(drawn, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        return bytes(model.SerializeToString())


def _rounded(matrix: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.int8]:
    return np.rint(matrix / np.where(scales == 0, np.float32(1), scales)).astype(np.int8)
