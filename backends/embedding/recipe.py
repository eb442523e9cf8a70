"""What the files beside a sentence encoder's weights say of how it is to be run.

They are those that sentence-transformers writes, in the forms of its versions
2 to 6: modules.json, 1_Pooling/config.json, sentence_bert_config.json,
config_sentence_transformers.json, and transformers' config.json and
tokenizer_config.json. A folder without them is a plain transformer, whose
token states are averaged.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from backends.embedding.base import Role
from models.errors import ConfigError

Pooling = Literal["mean", "cls", "max", "lasttoken", "weightedmean"]

# Every file here that is not a module's own.
ABOUT = (
    "config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_bert_config.json",
    "tokenizer_config.json",
)

_MOST_BYTES = 64 * 1024**2
_WIDTHS = ("hidden_size", "d_model", "dim", "n_embd")
# Which prompt belongs to a role, by the names that models give theirs; the first that is there.
_PROMPTS: Mapping[Role, Sequence[str]] = {"query": ("query",), "document": ("document", "passage", "corpus")}
# Up to version 5, one switch a mode. The mean over √tokens has the mean's direction, and only that counts.
_SWITCHES: Mapping[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """`dimensions` and `window` (tokens, special ones included) are None where no file says them.

    `pooling` is None where we cannot do what the files ask for, and `unusual`
    then says what that is: only a graph that ends in the sentence's own vector
    will do. So it must where the vector is `projected` after the pooling.
    """

    dimensions: int | None
    window: int | None
    pooling: Pooling | None = "mean"
    prompts: Mapping[Role, str] = field(default_factory=dict)
    lowercase: bool = False
    projected: bool = False
    unusual: str = ""

    def worded(self, text: str, role: Role) -> str:
        """What the model is given for a text in that role."""
        whole = self.prompts.get(role, "") + text
        return whole.lower() if self.lowercase else whole


def read_recipe(folder: Path) -> Recipe:
    """Raises `ConfigError` for a file that is there and cannot be read."""
    config, names, _, encoder, tokens = (_json(folder / name) if name != "modules.json" else {} for name in ABOUT)
    modules = _modules(folder)
    kinds = [kind for kind, _ in modules]
    pooled = _json(next((path for kind, path in modules if kind == "Pooling"), folder / "1_Pooling") / "config.json")
    dense = [_json(path / "config.json") for kind, path in modules if kind == "Dense"]
    pooling, unusual = _pooling(pooled)
    odd = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Dense", "Normalize", "Dropout")]
    if odd:
        pooling, unusual = None, f"a module {odd[0]}"
    width = _whole(pooled, "embedding_dimension", "word_embedding_dimension") or _whole(config, *_WIDTHS)
    return Recipe(
        dimensions=_whole(dense[-1], "out_features") if dense else width,
        window=_whole(encoder, "max_seq_length") or _window(config, tokens),
        pooling=pooling,
        prompts=_prompts(names),
        lowercase=encoder.get("do_lower_case") is True,
        projected=bool(dense),
        unusual=unusual,
    )


def window_of(tokenizer: Path) -> int | None:
    """Where a tokenizer.json would cut a text, in tokens. Raises `ConfigError` for what is no JSON."""
    truncation = _json(tokenizer).get("truncation")
    return _whole(truncation, "max_length") if isinstance(truncation, dict) else None


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """Class and folder of each, in order; a path that leaves the model's folder is not followed."""
    listed = _read(folder / "modules.json", list)
    found = [item for item in listed or () if isinstance(item, dict)]
    modules = []
    for item in found:
        path = Path(str(item.get("path", "")))
        inside = not path.is_absolute() and ".." not in path.parts
        modules.append((str(item.get("type", "")).rpartition(".")[2], folder / path if inside else folder))
    return modules


def _pooling(pooled: Mapping[str, Any]) -> tuple[Pooling | None, str]:
    named = pooled.get("pooling_mode")
    modes = [str(mode) for mode in (named if isinstance(named, list) else [named] if named else ())]
    modes = ["mean" if mode == "mean_sqrt_len_tokens" else mode for mode in modes]
    if not modes:
        modes = [mode for switch, mode in _SWITCHES.items() if pooled.get(switch) is True] or ["mean"]
    if len(modes) > 1:
        return None, f"pooling by {' and '.join(modes)} together"
    if modes[0] not in get_args(Pooling):
        return None, f"pooling by {modes[0]}"
    if pooled.get("include_prompt") is False:
        return None, "pooling that leaves out the prompt"
    return cast("Pooling", modes[0]), ""


def _prompts(names: Mapping[str, Any]) -> dict[Role, str]:
    prompts = names.get("prompts")
    known = {str(name): text for name, text in prompts.items()} if isinstance(prompts, dict) else {}
    usual = known.get(str(names.get("default_prompt_name")), "")
    found = {role: next((known[name] for name in _PROMPTS[role] if name in known), usual) for role in get_args(Role)}
    return {role: text if isinstance(text, str) else "" for role, text in found.items()}


def _window(config: Mapping[str, Any], tokens: Mapping[str, Any]) -> int | None:
    positions = _whole(config, "max_position_embeddings", "n_positions")
    if positions is not None and config.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        positions -= 2  # their positions begin after the padding token's
    # Where nobody said it, transformers writes a 1 with thirty zeros.
    said = [limit for limit in (positions, _whole(tokens, "model_max_length")) if limit is not None and limit < 10**7]
    return min(said, default=None)


def _whole(content: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = content.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _json(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = _read(file, dict) or {}
    return content


def _read(file: Path, form: type) -> Any:
    """None if the file is not there. Raises `ConfigError` for one that is too large or no JSON of that form."""
    try:
        if not file.exists():
            return None
        if file.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"cache.embedder: {file} is too large for a configuration")
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"cache.embedder: {file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"cache.embedder: {file} is not the JSON it should be") from error
    if not isinstance(content, form):
        raise ConfigError(f"cache.embedder: {file} is not the JSON it should be")
    return content
