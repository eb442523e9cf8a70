"""Sentence encoders in ONNX, on the CPU, in a thread beside the event loop."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.embedding import minilm
from backends.embedding.base import Role
from backends.embedding.batching import OneThread, SharedEmbeddings, Vector, unit
from backends.embedding.model_cache import sha256
from backends.embedding.runtime import errors as ort_errors
from backends.embedding.runtime import onnxruntime
from backends.embedding.tokens import Reader, spell
from models.errors import BackendError, ConfigError

_log = logging.getLogger(__name__)

# ONNX Runtime's exceptions have no base class of their own.
_RUNTIME_ERRORS = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)


class OnnxEmbedder:
    """all-MiniLM-L6-v2 in int8 from its packaged weights, or any ONNX sentence encoder from a local folder.

    One text a run, unpadded: a dynamically quantised model gives a text
    another vector in other company. Runs are made in one thread, first come
    first served; `threads` is what one run may use.
    """

    def __init__(
        self,
        *,
        model: str = minilm.NAME,
        path: Path | None = None,
        cache: Path | None = None,
        threads: int = 1,
        waiting: int = 1000,
        remembered: int = 2048,
    ) -> None:
        """`path` is a folder with `model.onnx` and `tokenizer.json`; token states are averaged.

        `cache` is where a built model is kept (default: the user's cache
        folder), `waiting` how many texts may wait, and `remembered` how many
        vectors are kept by the hash of their text. Raises `ConfigError`.
        """
        if path is None:
            minilm.check_name(model)
            self.revision = minilm.REVISION
            self.dimensions = minilm.DIMENSIONS
            self._window = minilm.WINDOW
        else:
            self.revision, self.dimensions, self._window = _inspect(path)
        self._path = path
        self._model = model
        self._cache = cache
        self._threads = threads
        self._encoder: _Encoder | None = None
        self._reader: Reader | None = None
        self._thread = OneThread(self._embed_one, name="embedder")
        self._shared = SharedEmbeddings(self._thread.begin, waiting=waiting, remembered=remembered)

    async def load(self) -> None:
        await self._thread.run(self._open)

    async def embed(self, texts: Sequence[str], *, role: Role) -> NDArray[np.float32]:  # noqa: ARG002 - symmetric model
        if self._reader is None:
            raise BackendError("the embedder is not loaded yet")
        for text in texts:
            self._reader.check_length(text)
        if not texts:
            return np.empty((0, self.dimensions), np.float32)
        return np.stack(await self._shared.embed(texts))

    async def close(self) -> None:
        await self._thread.close()

    def _open(self) -> None:
        if self._encoder is None:
            folder = self._path or minilm.build(self._model, cache=self._cache, report=_log.info)
            reader = Reader(folder / "tokenizer.json", window=self._window)
            self._encoder = _Encoder(folder / "model.onnx", threads=self._threads)
            self._reader = reader  # last: what is set here is what `embed` asks for

    def _embed_one(self, text: str) -> Vector:
        if self._reader is None or self._encoder is None:
            raise BackendError("the embedder is not loaded yet")
        tokens = self._reader.read(text)
        vector = unit(self._encoder.encode(tokens.ids))
        if len(vector) != self.dimensions:
            raise BackendError(f"the model gives vectors of {len(vector)}, not of {self.dimensions}")
        return unit(spell(vector, tokens.unknown)) if tokens.unknown else vector


class _Encoder:
    """One ONNX Runtime session, whatever names its model gives to its inputs and outputs."""

    def __init__(self, path: Path, *, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # A thread that spins between two runs takes the event loop's core.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Every text has its own length: memory planned for one shape is of no use to the next, and would be kept.
        options.enable_mem_pattern = False
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except _RUNTIME_ERRORS as error:
            raise BackendError(f"{path} cannot be loaded: {error}") from error
        self._inputs = [item.name for item in self._session.get_inputs()]
        names = [item.name for item in self._session.get_outputs()]
        self._output = "sentence_embedding" if "sentence_embedding" in names else names[0]

    def encode(self, ids: list[int]) -> NDArray[np.float32]:
        """The sentence's vector, not normalised."""
        row = np.array([ids], np.int64)
        values: dict[str, NDArray[np.int64]] = {
            name: np.ones_like(row) if name == "attention_mask" else np.zeros_like(row) for name in self._inputs
        }
        values["input_ids"] = row
        try:
            states: NDArray[Any] = self._session.run([self._output], values)[0][0]
        except _RUNTIME_ERRORS as error:
            # Not its message: that may quote the values.
            raise BackendError(f"ONNX Runtime failed on {len(ids)} tokens ({type(error).__name__})") from error
        return states.mean(axis=0) if states.ndim == 2 else states


def _inspect(path: Path) -> tuple[str, int, int]:
    """Revision, dimensions and window of a local folder."""
    # Only for a folder of the user's own.
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path / "model.onnx"), load_external_data=False)
        hashes = [sha256(file) for file in [*sorted(path.glob("model.onnx*")), path / "tokenizer.json"]]
        config = _json(path / "config.json")
        window = (
            _json(path / "sentence_bert_config.json").get("max_seq_length")
            or (_json(path / "tokenizer.json").get("truncation") or {}).get("max_length")
            or config.get("max_position_embeddings")
        )
    except (OSError, ValueError, DecodeError) as error:
        raise ConfigError(f"cache.embedder.path: {path} holds no ONNX sentence encoder ({error})") from error
    if not model.graph.output:  # so is an empty file read
        raise ConfigError(f"cache.embedder.path: {path}/model.onnx has no output")
    outputs = {output.name: output for output in model.graph.output}
    output = outputs.get("sentence_embedding", model.graph.output[0])
    width = output.type.tensor_type.shape.dim[-1].dim_value or config.get("hidden_size")
    if not isinstance(width, int) or not isinstance(window, int):
        raise ConfigError(
            f"cache.embedder.path: {path} does not say its dimensions (hidden_size in config.json) "
            "and its window (max_seq_length in sentence_bert_config.json)"
        )
    digest = hashlib.sha256("".join(hashes).encode()).hexdigest()[:12]
    return f"{path.name}@{digest}/onnx/1", width, window


def _json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_bytes()) if path.exists() else {}
    return content if isinstance(content, dict) else {}
