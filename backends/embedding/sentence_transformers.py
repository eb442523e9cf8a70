"""Any model that sentence-transformers runs, from the hub or a folder.

The package comes with the extra of its name; it and PyTorch are imported when the model is loaded.
"""

import logging
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from backends.embedding.base import Role
from backends.embedding.batching import OneThread, SharedEmbeddings, Vector, unit
from backends.embedding.hub import HubModel
from backends.embedding.model_cache import content_mark
from backends.embedding.recipe import Recipe, read_recipe
from backends.embedding.tokens import CHARACTERS_A_TOKEN, spell, unknown_words
from models.errors import BackendError, ConfigError, TextTooLong

_log = logging.getLogger(__name__)

_PACKAGE = "sentence_transformers"
_INSTALL = "needs the package sentence_transformers: pip install 'keepgate[sentence-transformers]'"
# Where names without an organisation are, as the package itself takes them.
_ORGANISATION = "sentence-transformers"
_WEIGHTS = (".safetensors", ".bin")
# What the package reads beside weights. No Python: code of a model is never run.
_FILES = (".json", ".txt", ".model", ".jinja")
_OTHER_FORMS = ("onnx/", "openvino/", "coreml/")
# The libraries below raise what they like for an unusable folder, and ImportError for what a model needs beside them.
_UNUSABLE = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RuntimeError,
    ImportError,
    SafetensorError,
    UnpicklingError,
)
# For a model whose tokenizer knows no end, such as a table of words.
_WINDOW = 8192


class SentenceTransformersEmbedder:
    """Runs in fp32 on the CPU, one text a run: in a batch a text's vector depends on its company in the last bits.

    Runs are made in one thread, first come first served; `threads` is what
    one run may use. PyTorch has one such number a process.
    """

    def __init__(
        self,
        *,
        model: str = "all-MiniLM-L6-v2",
        path: Path | None = None,
        revision: str | None = None,
        dimensions: int | None = None,
        endpoint: str | None = None,
        cache: Path | None = None,
        threads: int = 1,
        waiting: int = 1000,
    ) -> None:
        """`model` is a name on the hub, there at `revision` (a commit, tag or branch); `path` is a folder instead.

        `dimensions` cuts vectors to their first numbers, for models trained to
        bear it, and stands in where a model's files do not say their length.
        `endpoint`, `cache`, `waiting` and what is raised are those of `OnnxEmbedder`.
        """
        if path is not None:
            name, mark, about = path.resolve().name, _mark(path, cache), path
            self._fetch: Callable[[], Path] = lambda: path
        else:
            on_hub = HubModel(
                model if "/" in model else f"{_ORGANISATION}/{model}", revision=revision, endpoint=endpoint, cache=cache
            )
            name, mark, about = on_hub.name, on_hub.commit[:12], on_hub.about
            files = _needed(list(on_hub.files))
            if not any(file.endswith(_WEIGHTS) for file in files):
                raise ConfigError(f"cache.embedder.model: {name} has no weights for PyTorch on the hub")
            self._fetch = lambda: on_hub.fetch(files)
        self._recipe = read_recipe(about)
        length = dimensions or self._recipe.dimensions
        if length is None:
            raise ConfigError(f"cache.embedder.dimensions: the files of {name} do not say it, and it is needed")
        self.dimensions = length
        self.revision = f"{name}@{mark}/st/{'' if dimensions is None else f'{dimensions}/'}1"
        self._cut = dimensions
        self._threads = threads
        self._encoder: _Encoder | None = None
        self._thread = OneThread(self._embed_one, name="embedder")
        self._shared = SharedEmbeddings(self._thread.begin, waiting=waiting)

    async def load(self) -> None:
        await self._thread.run(self._open)

    async def embed(self, texts: Sequence[str], *, role: Role) -> NDArray[np.float32]:
        if self._encoder is None:
            raise BackendError("the embedder is not loaded yet")
        # Worded as the model's files say, so that texts of both roles are shared where their words are the same.
        asked = [self._recipe.prompts.get(role, "") + text for text in texts]
        for text in asked:
            self._encoder.check_length(text)
        if not asked:
            return np.empty((0, self.dimensions), np.float32)
        return np.stack(await self._shared.embed(asked))

    async def close(self) -> None:
        await self._thread.close()
        self._encoder = None  # the model goes now, not when its thread's cycle is collected

    def _open(self) -> None:
        if self._encoder is None:
            if find_spec(_PACKAGE) is None:
                raise BackendError(f"cache.embedder.kind: sentence-transformers {_INSTALL}")
            self._encoder = _Encoder(self._fetch(), self._recipe, cut=self._cut, threads=self._threads)

    def _embed_one(self, text: str) -> Vector:
        if self._encoder is None:
            raise BackendError("the embedder is not loaded yet")
        unknown = self._encoder.read(text)
        vector = unit(self._encoder.encode(text))
        if len(vector) != self.dimensions:
            raise BackendError(
                f"the model gives vectors of {len(vector)}, not of {self.dimensions}: set cache.embedder.dimensions"
            )
        return unit(spell(vector, unknown)) if unknown else vector


class _Encoder:
    """One loaded model."""

    def __init__(self, folder: Path, recipe: Recipe, *, cut: int | None, threads: int) -> None:
        if recipe.unusual == "pooling that leaves out the prompt" and any(recipe.prompts.values()):
            raise BackendError(f"{folder.name} asks for {recipe.unusual}, which is not done here")
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(threads)
        try:
            model = SentenceTransformer(
                str(folder), device="cpu", local_files_only=True, trust_remote_code=False, truncate_dim=cut
            )
        except _UNUSABLE as error:
            raise BackendError(f"{folder} cannot be loaded as a sentence-transformers model: {error}") from error
        if not {"text", "message"}.issuperset(getattr(model, "modalities", ())):
            # A text that looks like an address would be fetched, one that looks like a path opened.
            raise BackendError(f"{folder} also takes other things than text: an embedder of questions must not")
        self._model = model.float().eval()
        self._tokenizer: Any = model.tokenizer
        window = getattr(model, "max_seq_length", None)
        said = window if isinstance(window, int) and 0 < window < 10**7 else None
        self._window = said or recipe.window or _WINDOW
        self._unknown = getattr(self._tokenizer, "unk_token_id", None)

    def check_length(self, text: str) -> None:
        """Raises `TextTooLong` for what is far too long, without reading it."""
        if len(text) > self._window * CHARACTERS_A_TOKEN:
            raise TextTooLong(f"{len(text)} characters are beyond a window of {self._window} tokens")

    def read(self, text: str) -> tuple[str, ...]:
        """The words that the model has no token for. Raises `TextTooLong`: the model would cut without a word."""
        spans = None
        if hasattr(self._tokenizer, "is_fast"):
            quick = bool(self._tokenizer.is_fast)
            read = self._tokenizer(text, truncation=False, verbose=False, return_offsets_mapping=quick)
            ids = read["input_ids"]
            spans = read["offset_mapping"] if quick else None
        else:  # a tokenizer of the package `tokenizers`, or one of its own
            read = self._tokenizer.encode(text) if hasattr(self._tokenizer, "encode") else text.split()
            ids = getattr(read, "ids", read)
        if len(ids) > self._window:
            raise TextTooLong(f"{len(ids)} tokens are beyond a window of {self._window}")
        return () if spans is None else unknown_words(text, ids, spans, self._unknown)

    def encode(self, text: str) -> NDArray[np.float32]:
        try:
            # The prompt is part of the text already: an empty one keeps the model's default away.
            row: NDArray[np.float32] = self._model.encode(
                [text], prompt="", batch_size=1, show_progress_bar=False, convert_to_numpy=True
            )[0]
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            # Not its message: that may quote the text.
            raise BackendError(f"the model failed on a text ({type(error).__name__})") from error
        return row


def _mark(path: Path, cache: Path | None) -> str:
    """Of what is in a folder: weights and everything that says how they are run."""
    if not path.is_dir():
        raise ConfigError(f"cache.embedder.path: there is no folder {path}")
    try:
        names = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
        needed = _needed(sorted(names))
        if not any(name.endswith(_WEIGHTS) for name in needed):
            raise ConfigError(f"cache.embedder.path: {path} has no weights for PyTorch, such as model.safetensors")
        return content_mark([names[name] for name in needed], cache=cache)
    except OSError as error:
        raise ConfigError(f"cache.embedder.path: {path} cannot be read: {error.strerror}") from error


def _needed(files: Sequence[str]) -> list[str]:
    """Of a model's files those that the package reads; in a folder with safetensors, no other form of the weights."""
    usable = [file for file in files if not file.startswith((*_OTHER_FORMS, ".")) and "/." not in file]
    safe = {file.rpartition("/")[0] for file in usable if file.endswith(".safetensors")}
    needed = []
    for file in usable:
        folder, _, name = file.rpartition("/")
        pickled = name.startswith("pytorch_model") and name.endswith(".bin")
        if name.endswith((*_FILES, ".safetensors")) or (pickled and folder not in safe):
            needed.append(file)
    return sorted(needed)
