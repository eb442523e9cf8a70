"""Cross-encoders in ONNX: both questions read together, on the CPU, in a thread beside the event loop."""

import asyncio
import hashlib
import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from backends.onnx_runtime import ERRORS, onnxruntime
from models.errors import BackendError, ConfigError, TextRefused, TextTooLong

T = TypeVar("T")

# No vocabulary spells text longer than this on average; such a pair is refused before it costs anything.
_CHARACTERS_A_TOKEN = 20
_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})
_WIDEST_WINDOW = 8192
_TRIAL = ("a", "a")


class OnnxJudge:
    """Any ONNX cross-encoder of one or two outputs from a local folder; benchmarks/train_cross_encoder.py makes one.

    The folder holds `model.onnx` and `tokenizer.json`; the window is the
    least of what they and the `config.json` beside them say. One output is the
    log odds that the questions are the same; of two, the second is for it. One
    pair a run, unpadded: a dynamically quantised model judges a pair otherwise
    in other company. Runs are made in one thread, first come first served;
    `threads` is what one run may use.
    """

    def __init__(self, *, path: Path, threads: int = 1, waiting: int = 32) -> None:
        """At most `waiting` pairs wait; more have no opinion at once. Raises `ConfigError`."""
        self._model = CrossEncoder(path)
        self.revision = self._model.revision
        self._threads = threads
        self._waiting = waiting
        self._under_way = 0
        self._open = False
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="judge")

    async def load(self) -> None:
        await self._beside(self._opened)

    async def opinion(self, asked: str, stored: str) -> float:
        if not self._open:
            raise BackendError("the judge is not loaded yet")
        if self._under_way >= self._waiting:
            raise BackendError(f"{self._waiting} pairs wait for the judge already")
        self._under_way += 1
        try:
            return await self._beside(partial(self._model.opinion, asked, stored))
        finally:
            self._under_way -= 1

    async def close(self) -> None:
        """Who still waits gets a `BackendError`; a run under way is waited for."""
        await asyncio.to_thread(self._executor.shutdown, wait=True, cancel_futures=True)

    async def _beside(self, call: Callable[[], T]) -> T:
        try:
            running = self._executor.submit(call)
        except RuntimeError as error:
            raise BackendError("the judge is closed") from error
        try:
            # Cancelled while it waits, it is never run.
            return await asyncio.wrap_future(running)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise BackendError("the judge was closed") from None

    def _opened(self) -> None:
        if not self._open:
            self._model.open(threads=self._threads)
            self._open = True


class CrossEncoder:
    """The model of a folder, run where it is asked. `revision` and `window` (in tokens) are known before it is opened.

    Raises `ConfigError`, and from `open` and `opinion` what a `Judge` does.
    """

    def __init__(self, path: Path) -> None:
        self.revision, self.window = _inspect(path)
        self._path = path

    def open(self, *, threads: int = 1) -> None:
        path = self._path
        try:
            self._tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        except Exception as error:  # tokenizers raises Exception itself, for any unusable file
            raise BackendError(f"{path / 'tokenizer.json'} is no tokenizer: {error}") from error
        # The file may ask for both: a cut pair would get the opinion on its beginning.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._unknown = _unknown_token(path / "tokenizer.json")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # A thread that spins between two runs takes the event loop's core.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Every pair has its own length: memory planned for one shape is of no use to the next, and would be kept.
        options.enable_mem_pattern = False
        model = path / "model.onnx"
        try:
            self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        except ERRORS as error:
            raise BackendError(f"{model} cannot be loaded: {error}") from error
        self._inputs = [item.name for item in self._session.get_inputs()]
        if not {"input_ids"} <= set(self._inputs) <= _INPUTS:
            raise BackendError(f"{model} is no cross-encoder: its inputs are {', '.join(self._inputs)}")
        names = [item.name for item in self._session.get_outputs()]
        self._output = "logits" if "logits" in names else names[0]
        self.opinion(*_TRIAL)  # what it cannot do at all shows now

    def opinion(self, asked: str, stored: str) -> float:
        if len(asked) + len(stored) > self.window * _CHARACTERS_A_TOKEN:
            raise TextTooLong(f"{len(asked) + len(stored)} characters are beyond a window of {self.window} tokens")
        encoding = self._encoded(asked, stored)
        row = np.array([encoding.ids], np.int64)
        values = {
            "input_ids": row,
            "attention_mask": np.ones_like(row),
            "token_type_ids": np.array([encoding.type_ids], np.int64),
        }
        try:
            logits: NDArray[Any] = self._session.run([self._output], {name: values[name] for name in self._inputs})[0]
        except ERRORS as error:
            # Not its message: that may quote the values.
            raise BackendError(f"ONNX Runtime failed on {row.size} tokens ({type(error).__name__})") from error
        if logits.size not in (1, 2):
            raise BackendError(f"the model has {logits.size} outputs for a pair, a judge one or two")
        odds = logits.astype(np.float64).reshape(-1)
        log_odds = float(odds[0] if odds.size == 1 else odds[1] - odds[0])
        if not math.isfinite(log_odds):
            raise BackendError("the model gave what is not a number")
        return 0.5 * (1.0 + math.tanh(0.5 * log_odds))

    def _encoded(self, asked: str, stored: str) -> Encoding:
        try:
            encoding = self._tokenizer.encode(asked, stored)
        except TypeError as error:  # what tokenizers raises for a lone surrogate
            raise TextRefused("the text holds a lone surrogate: it is no Unicode text") from error
        if len(encoding.ids) > self.window:
            raise TextTooLong(f"{len(encoding.ids)} tokens are beyond a window of {self.window}")
        if self._unknown is not None and self._unknown in encoding.ids:
            unread: tuple[list[str], list[str]] = ([], [])
            for token, side, (start, end) in zip(encoding.ids, encoding.sequence_ids, encoding.offsets, strict=True):
                if token == self._unknown and side is not None:
                    unread[side].append((stored if side else asked)[start:end].casefold())
            if unread[0] != unread[1]:
                # To the model all of them are one token: "buy" and "sell" in Chinese would be the same word.
                raise TextRefused("the questions differ in words that the judge cannot read")
        return encoding


def _inspect(path: Path) -> tuple[str, int]:
    """Revision and window of a folder."""
    try:
        digest = hashlib.sha256()
        for file in [path / "tokenizer.json", *sorted(path.glob("model.onnx*"))]:
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
        if not (path / "model.onnx").is_file():
            raise FileNotFoundError("there is no model.onnx")
        windows = [
            _json(path / "config.json").get("max_position_embeddings"),
            _json(path / "tokenizer_config.json").get("model_max_length"),
            _part(_json(path / "tokenizer.json"), "truncation").get("max_length"),
        ]
    except (OSError, ValueError) as error:
        raise ConfigError(f"second_opinion.path: {path} holds no ONNX cross-encoder ({error})") from error
    known = [window for window in windows if isinstance(window, int) and 8 <= window <= _WIDEST_WINDOW]
    if not known:
        raise ConfigError(
            f"second_opinion.path: {path} does not say its window (max_position_embeddings in config.json)"
        )
    return f"{path.name}@{digest.hexdigest()[:12]}/onnx/1", min(known)


def _unknown_token(path: Path) -> int | None:
    model = _part(_json(path), "model")
    if isinstance(model.get("unk_id"), int):
        return int(model["unk_id"])
    vocabulary, name = model.get("vocab"), model.get("unk_token")
    known = vocabulary.get(name) if isinstance(vocabulary, dict) and isinstance(name, str) else None
    return known if isinstance(known, int) else None


def _json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_bytes()) if path.exists() else {}
    return content if isinstance(content, dict) else {}


def _part(content: dict[str, Any], name: str) -> dict[str, Any]:
    part = content.get(name)
    return part if isinstance(part, dict) else {}
