"""Sentence encoders in ONNX, on the CPU, in a thread beside the event loop."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.embedding import minilm
from backends.embedding.base import Role
from backends.embedding.batching import OneThread, SharedEmbeddings, Vector, unit
from backends.embedding.hub import HubModel, is_name
from backends.embedding.model_cache import content_mark
from backends.embedding.recipe import ABOUT, Pooling, Recipe, read_recipe, window_of
from backends.embedding.runtime import ERRORS, onnxruntime
from backends.embedding.tokens import Reader, spell
from models.errors import BackendError, ConfigError

_log = logging.getLogger(__name__)

# Where a graph lies unless one is named: in a folder of one's own, and where exporters put it on the hub.
_GRAPHS = ("model.onnx", "onnx/model.onnx")
_SENTENCE = "sentence_embedding"
_STATES = ("last_hidden_state", "token_embeddings")
_INTEGERS = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}


class OnnxEmbedder:
    """all-MiniLM-L6-v2 in int8 from its packaged weights, or any ONNX sentence encoder from the hub or a folder.

    One text a run, unpadded: a dynamically quantised model gives a text
    another vector in other company. Runs are made in one thread, first come
    first served; `threads` is what one run may use.
    """

    def __init__(
        self,
        *,
        model: str = minilm.NAME,
        path: Path | None = None,
        revision: str | None = None,
        file: str | None = None,
        endpoint: str | None = None,
        cache: Path | None = None,
        threads: int = 1,
        waiting: int = 1000,
    ) -> None:
        """`model` is the packaged one or `organisation/name` on the hub, there at `revision` (a commit, tag or
        branch); `path` is a folder laid out like one there. `file` is the graph's place in it.

        `endpoint` is the hub's address, `cache` where models are kept (default:
        the user's cache folder), `waiting` how many texts may wait. Blocks: a
        folder's files are read, and what says how a model is run is fetched from
        the hub. Raises `ConfigError`, and `BackendError` if the hub cannot be asked.
        """
        if path is not None:
            self._model = _local(path, file, cache)
        elif is_name(model):
            self._model = _on_hub(HubModel(model, revision=revision, endpoint=endpoint, cache=cache), file)
        else:
            self._model = _packaged(model, cache)
        self.revision = self._model.revision
        self.dimensions = self._model.dimensions
        self._threads = threads
        self._encoder: _Encoder | None = None
        self._reader: Reader | None = None
        self._thread = OneThread(self._embed_one, name="embedder")
        self._shared = SharedEmbeddings(self._thread.begin, waiting=waiting)

    async def load(self) -> None:
        await self._thread.run(self._open)

    async def embed(self, texts: Sequence[str], *, role: Role) -> NDArray[np.float32]:
        if self._reader is None:
            raise BackendError("the embedder is not loaded yet")
        asked = [self._model.recipe.worded(text, role) for text in texts]
        for text in asked:
            self._reader.check_length(text)
        if not asked:
            return np.empty((0, self.dimensions), np.float32)
        return np.stack(await self._shared.embed(asked))

    async def close(self) -> None:
        await self._thread.close()
        self._encoder = self._reader = None  # the model goes now, not when its thread's cycle is collected

    def _open(self) -> None:
        if self._encoder is None:
            folder = self._model.fetch()
            reader = Reader(_tokenizer(folder, self._model.graph), window=self._model.window)
            self._encoder = _Encoder(folder / self._model.graph, self._model.recipe, threads=self._threads)
            self._reader = reader  # last: what is set here is what `embed` asks for

    def _embed_one(self, text: str) -> Vector:
        if self._reader is None or self._encoder is None:
            raise BackendError("the embedder is not loaded yet")
        tokens = self._reader.read(text)
        vector = unit(self._encoder.encode(tokens.ids))
        if len(vector) != self.dimensions:
            raise BackendError(f"the model gives vectors of {len(vector)}, not of {self.dimensions}")
        return unit(spell(vector, tokens.unknown)) if tokens.unknown else vector


@dataclass(frozen=True, slots=True)
class _Model:
    """`fetch` gives the folder with the tokenizer and, at `graph`, the graph."""

    revision: str
    dimensions: int
    window: int
    recipe: Recipe
    graph: str
    fetch: Callable[[], Path]


class _Encoder:
    """One ONNX Runtime session, whatever names its model gives to its inputs and outputs."""

    def __init__(self, path: Path, recipe: Recipe, *, threads: int) -> None:
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
        except ERRORS as error:
            raise BackendError(f"{path} cannot be loaded: {error}") from error
        self._inputs = {item.name: _INTEGERS.get(item.type) for item in self._session.get_inputs()}
        foreign = [name for name, kind in self._inputs.items() if name not in _FILLED or kind is None]
        if foreign or "input_ids" not in self._inputs:
            asked = foreign[0] if foreign else "no input_ids"
            raise BackendError(f"{path} is no sentence encoder: its graph asks for {asked}")
        self._output = _output({item.name: item.shape for item in self._session.get_outputs()})
        self._pooling = recipe.pooling
        if self._output != _SENTENCE and (recipe.pooling is None or recipe.projected):
            why = recipe.unusual or "a layer after the pooling"
            raise BackendError(
                f"the model asks for {why}, and {path.name} ends before that: "
                "use kind: sentence-transformers, or a graph with an output sentence_embedding"
            )

    def encode(self, ids: list[int]) -> NDArray[np.float32]:
        """The sentence's vector, not normalised."""
        row = np.array([ids], np.int64)
        values = {name: _FILLED[name](row).astype(kind, copy=False) for name, kind in self._inputs.items()}
        try:
            states: NDArray[Any] = self._session.run([self._output], values)[0][0]
        except ERRORS as error:
            # Not its message: that may quote the values.
            raise BackendError(f"ONNX Runtime failed on {len(ids)} tokens ({type(error).__name__})") from error
        if states.ndim == 1:
            return states
        if states.ndim != 2 or self._pooling is None:
            raise BackendError(f"the graph's output {self._output} has {states.ndim + 1} axes, not two or three")
        return _pooled(states.astype(np.float32, copy=False), self._pooling)


# What a graph may ask for, and what one unpadded text has there.
_FILLED: dict[str, Callable[[NDArray[np.int64]], NDArray[np.int64]]] = {
    "input_ids": lambda ids: ids,
    "attention_mask": np.ones_like,
    "token_type_ids": np.zeros_like,
    "position_ids": lambda ids: np.arange(ids.shape[1], dtype=np.int64)[None],
}


def _output(shapes: dict[str, list[Any]]) -> str:
    """The sentence's own vector, else the token states, else the first that there is."""
    if _SENTENCE in shapes:
        return _SENTENCE
    states = [name for name, shape in shapes.items() if len(shape) == 3]
    return next((name for name in _STATES if name in states), (states or list(shapes))[0])


def _pooled(states: NDArray[np.float32], pooling: Pooling) -> NDArray[np.float32]:
    """States [tokens, width] of one text to its vector."""
    match pooling:
        case "mean":
            pooled: NDArray[np.float32] = states.mean(axis=0)
        case "cls":
            pooled = states[0]
        case "max":
            pooled = states.max(axis=0)
        case "lasttoken":
            pooled = states[-1]
        case "weightedmean":
            pooled = np.arange(1, len(states) + 1, dtype=np.float32) @ states
    return pooled


def _packaged(model: str, cache: Path | None) -> _Model:
    minilm.check_name(model)
    return _Model(
        revision=minilm.REVISION,
        dimensions=minilm.DIMENSIONS,
        window=minilm.WINDOW,
        recipe=Recipe(dimensions=minilm.DIMENSIONS, window=minilm.WINDOW),
        graph="model.onnx",
        fetch=lambda: minilm.build(model, cache=cache, report=_log.info),
    )


def _on_hub(model: HubModel, file: str | None) -> _Model:
    graph = file or next((name for name in _GRAPHS if name in model.files), None)
    if graph is None or graph not in model.files:
        there = sorted(name for name in model.files if name.endswith(".onnx"))
        instead = f"there is {', '.join(there[:10])}" if there else "it has none: use kind: sentence-transformers"
        raise ConfigError(
            f"cache.embedder.file: {model.name} has no {file or ' or '.join(_GRAPHS)} on the hub; {instead}"
        )
    recipe = read_recipe(model.about)
    if recipe.dimensions is None or recipe.window is None:
        raise ConfigError(f"cache.embedder.model: the files of {model.name} do not say its dimensions and its window")
    beside = str(PurePosixPath(graph).with_name("tokenizer.json"))
    tokenizer = beside if "tokenizer.json" not in model.files and beside in model.files else "tokenizer.json"
    weights = [name for name in model.files if name.startswith((f"{graph}_data", f"{graph}.data"))]
    return _Model(
        revision=f"{model.name}@{model.commit[:12]}/{graph}/1",
        dimensions=recipe.dimensions,
        window=recipe.window,
        recipe=recipe,
        graph=graph,
        fetch=lambda: model.fetch([graph, tokenizer, *weights]),
    )


def _local(path: Path, file: str | None, cache: Path | None) -> _Model:
    # Only for a folder of the user's own.
    import onnx
    from google.protobuf.message import DecodeError

    graph = file or next((name for name in _GRAPHS if (path / name).is_file()), _GRAPHS[0])
    try:
        model = onnx.load(str(path / graph), load_external_data=False)
        tokenizer = _tokenizer(path, graph)
        weights = sorted((path / graph).parent.glob(f"{(path / graph).name}*"))
        about = [path / name for name in ABOUT if (path / name).is_file()]
        mark = content_mark([*weights, tokenizer, *about, *sorted(path.glob("[0-9]_*/config.json"))], cache=cache)
    except (OSError, ValueError, DecodeError) as error:
        raise ConfigError(f"cache.embedder.path: {path} holds no ONNX sentence encoder ({error})") from error
    if not model.graph.output:  # so is an empty file read
        raise ConfigError(f"cache.embedder.path: {path}/{graph} has no output")
    recipe = read_recipe(path)
    shapes = {output.name: list(output.type.tensor_type.shape.dim) for output in model.graph.output}
    window, width = recipe.window or window_of(tokenizer), shapes[_output(shapes)][-1:]
    dimensions = (width[0].dim_value if width else 0) or recipe.dimensions
    if dimensions is None or window is None:
        raise ConfigError(
            f"cache.embedder.path: {path} does not say its dimensions (hidden_size in config.json) "
            "and its window (max_seq_length in sentence_bert_config.json)"
        )
    return _Model(
        revision=f"{path.resolve().name}@{mark}/onnx/2",
        dimensions=dimensions,
        window=window,
        recipe=recipe,
        graph=graph,
        fetch=lambda: path,
    )


def _tokenizer(folder: Path, graph: str) -> Path:
    """The model's own, else the one beside its graph."""
    beside = (folder / graph).with_name("tokenizer.json")
    return beside if not (folder / "tokenizer.json").is_file() and beside.is_file() else folder / "tokenizer.json"
