"""Train a cross-encoder for the cache's second opinion, from the weights of all-MiniLM-L6-v2.

    python -m benchmarks.train_cross_encoder --data DIR --out FOLDER [--seed N] [--passes N] [--threads N]

Learns from the pairs that the verifier learns from, split alike (benchmarks/verifier_data.py, benchmarks/templates.py),
and writes `model.onnx` (int8), `tokenizer.json` and `config.json`. What it is worth beside the verifier, and the
`second_opinion.json` that weighs the two, is then measured on pairs that neither learned from:

    python -m benchmarks.second_opinion --data DIR --model FOLDER --write

Needs torch (pip install 'keepgate[train]'); the gateway does not.
"""

import argparse
import hashlib
import json
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from backends.embedding.minilm import WEIGHTS_REVISION, source
from benchmarks.cross_encoder_graph import HEAD, HEADS, LAYERS, STATE, cross_encoder
from benchmarks.train_verifier import generated
from benchmarks.verifier_data import Labelled, labelled

WINDOW = 256
_LONGEST = 96  # tokens of a pair to learn from: few are longer, and they cost most
_BATCH = 32
_POOL = 64  # batches that are sorted by length together
_ENCODER_RATE, _HEAD_RATE, _WARM_UP = 1e-4, 1e-3, 0.06
# Pairs that say little about questions: of each, this share is drawn, with this weight.
_LITTLE, _LITTLE_DRAWN, _LITTLE_WEIGHT = 0.2, 0.4, 0.3


class Example(NamedTuple):
    """Token ids of both texts with the special ones, and where the second begins."""

    ids: list[int]
    second: int
    label: int
    weight: float


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the labelled sets")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--passes", type=float, default=0.5, help="how often every pair is learned from")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()

    pairs = labelled(options.data, seed=options.seed)
    pairs += generated(pairs, seed=options.seed)
    learned = [pair for pair in pairs if pair.part == "learn" and pair.source != "clinc150"]
    options.out.mkdir(parents=True, exist_ok=True)
    weights = learn(learned, seed=options.seed, passes=options.passes, threads=options.threads)
    write(options.out, weights, trained=f"{_digest(learned)}-{options.seed}-{options.passes:g}")
    return 0


def write(folder: Path, weights: dict[str, NDArray[np.float32]], *, trained: str) -> None:
    """The folder that the second opinion of kind `onnx` reads."""
    (folder / "model.onnx").write_bytes(cross_encoder(weights, window=WINDOW, quantized=True))
    tokenizer = json.loads((source() / "tokenizer.json").read_bytes())
    tokenizer["truncation"] = tokenizer["padding"] = None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    about = {
        "max_position_embeddings": WINDOW,
        "hidden_size": STATE,
        "num_labels": 1,
        "from": f"all-MiniLM-L6-v2@{WEIGHTS_REVISION}",
        "trained": trained,
    }
    (folder / "config.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def examples(pairs: Sequence[Labelled], *, seed: int) -> list[Example]:
    """Either text first, by chance; without the few that are very long."""
    tokenizer = Tokenizer.from_file(str(source() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    draw = random.Random(seed)  # noqa: S311 - nothing secret, the same again is the point
    chosen: list[tuple[str, str]] = []
    about: list[tuple[int, float]] = []
    for pair in pairs:
        little = pair.weight < _LITTLE
        if little and draw.random() > _LITTLE_DRAWN:
            continue
        chosen.append((pair.a, pair.b) if draw.random() < 0.5 else (pair.b, pair.a))
        about.append((pair.label, _LITTLE_WEIGHT if little else pair.weight))
    found = []
    for encoding, (label, weight) in zip(tokenizer.encode_batch(chosen), about, strict=True):
        if len(encoding.ids) <= _LONGEST:
            found.append(Example(encoding.ids, encoding.type_ids.index(1), label, weight))
    return found


def learn(pairs: Sequence[Labelled], *, seed: int, passes: float, threads: int) -> dict[str, NDArray[np.float32]]:
    """All weights of the cross-encoder after so many passes over the pairs (AdamW, one cycle of the rate)."""
    import torch
    from safetensors.numpy import load_file

    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    known = examples(pairs, seed=seed)
    weights = {
        name: torch.nn.Parameter(torch.from_numpy(array.astype(np.float32)))
        for name, array in load_file(source() / "model.safetensors").items()
        if not name.startswith(("pooler.", "embeddings.position_ids"))
    }
    for name, (outer, inner) in HEAD.items():
        weights[f"{name}.weight"] = torch.nn.Parameter(torch.randn(outer, inner) / math.sqrt(inner))
        weights[f"{name}.bias"] = torch.nn.Parameter(torch.zeros(outer))
    # The table of words is half of all weights and knows its words already.
    weights["embeddings.word_embeddings.weight"].requires_grad_(requires_grad=False)
    encoder = [one for name, one in weights.items() if not name.startswith("head") and one.requires_grad]
    head = [one for name, one in weights.items() if name.startswith("head")]
    rates = [{"params": encoder, "lr": _ENCODER_RATE}, {"params": head, "lr": _HEAD_RATE}]
    optimizer = torch.optim.AdamW(rates, weight_decay=0.01)
    steps = max(int(passes * len(known) / _BATCH), 1)
    cycle = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (_WARM_UP * steps + 1), max(0.0, (steps - step) / steps))
    )
    started, loss_seen = time.perf_counter(), 0.0
    for step, batch in zip(range(steps), _batches(known, seed=seed), strict=False):
        ids, segments, mask, labels, counts = (torch.from_numpy(array) for array in batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = forward(weights, ids, segments, mask)
        losses = torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), labels, reduction="none")
        loss = (losses * counts).sum() / counts.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*encoder, *head], 1.0)
        optimizer.step()
        cycle.step()
        loss_seen += float(loss.detach())
        if (step + 1) % 100 == 0:
            spent = time.perf_counter() - started
            print(f"step {step + 1} of {steps}, loss {loss_seen / 100:.4f}, {spent:.0f} s", file=sys.stderr, flush=True)
            loss_seen = 0.0
    return {name: one.detach().numpy() for name, one in weights.items()}


def forward(weights: dict[str, Any], ids: Any, segments: Any, mask: Any) -> Any:
    """Logits [pairs] of ids, segments (0, 1) and mask [pairs, tokens]; BERT's forward pass (Devlin et al. 2019)."""
    import torch
    from torch.nn import functional

    def linear(name: str, x: Any) -> Any:
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name: str, x: Any) -> Any:
        return functional.layer_norm(x, (STATE,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-12)

    pairs, tokens = ids.shape
    states = (
        weights["embeddings.word_embeddings.weight"][ids]
        + weights["embeddings.position_embeddings.weight"][:tokens]
        + weights["embeddings.token_type_embeddings.weight"][segments]
    )
    states = norm("embeddings.LayerNorm", states)
    seen = mask[:, None, None, :].bool()
    for number in range(LAYERS):
        layer = f"encoder.layer.{number}"
        heads = [
            linear(f"{layer}.attention.self.{part}", states).view(pairs, tokens, HEADS, -1).transpose(1, 2)
            for part in ("query", "key", "value")
        ]
        mixed = functional.scaled_dot_product_attention(*heads, attn_mask=seen)
        mixed = linear(f"{layer}.attention.output.dense", mixed.transpose(1, 2).reshape(pairs, tokens, STATE))
        states = norm(f"{layer}.attention.output.LayerNorm", mixed + states)
        inner = functional.gelu(linear(f"{layer}.intermediate.dense", states))
        states = norm(f"{layer}.output.LayerNorm", linear(f"{layer}.output.dense", inner) + states)
    first = (mask * (1 - segments))[:, :, None].to(states.dtype)
    second = (mask * segments)[:, :, None].to(states.dtype)
    a, b = (states * first).sum(1) / first.sum(1), (states * second).sum(1) / second.sum(1)
    together = torch.cat([a + b, (a - b).abs(), a * b], dim=-1)
    return linear("head.out", functional.gelu(linear("head.in", together)))[:, 0]


def _batches(known: Sequence[Example], *, seed: int) -> Iterator[tuple[NDArray[Any], ...]]:
    """Ids, segments, mask [32, tokens], labels and weights [32], without end; texts of about one length together."""
    draw = random.Random(seed)  # noqa: S311 - nothing secret, the same again is the point
    order: list[int] = []
    while True:
        if len(order) < _BATCH * _POOL:
            order += draw.sample(range(len(known)), len(known))
        pool = sorted(order[: _BATCH * _POOL], key=lambda place: len(known[place].ids))
        del order[: _BATCH * _POOL]
        starts = list(range(0, len(pool) - _BATCH + 1, _BATCH))
        draw.shuffle(starts)
        for start in starts:
            yield padded([known[place] for place in pool[start : start + _BATCH]])


def padded(batch: Sequence[Example]) -> tuple[NDArray[Any], ...]:
    """Ids, segments and mask [pairs, tokens], labels and weights [pairs]."""
    longest = max(len(one.ids) for one in batch)
    ids, segments, mask = (np.zeros((len(batch), longest), np.int64) for _ in range(3))
    for row, one in enumerate(batch):
        ids[row, : len(one.ids)] = one.ids
        segments[row, one.second : len(one.ids)] = 1
        mask[row, : len(one.ids)] = 1
    labels, weights = [one.label for one in batch], [one.weight for one in batch]
    return ids, segments, mask, np.array(labels, np.float32), np.array(weights, np.float32)


def _digest(pairs: Sequence[Labelled]) -> str:
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(json.dumps(pair).encode())
    return digest.hexdigest()[:8]


if __name__ == "__main__":
    raise SystemExit(main())
