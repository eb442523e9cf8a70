"""What the rules of the semantic tier decline, and which turns of a conversation they call self-contained.

    python -m benchmarks.eligibility --data DIR [--show RULE] [--samples 50] [--seed 0] [--embed]

`DIR` holds the labelled sets, one folder each. Markdown tables on stdout. `--show`
prints samples of the texts that a rule declined (or `eligible`: of those that
none did) instead. `--embed` adds the figures that need an embedder.
"""

import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models.request import Request
from service.caching.eligibility import RULES, judge

ASKED = Request("chat", "m", {"messages": []}, b"")


def rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def texts(data: Path) -> dict[str, list[str]]:
    """Each set's distinct texts."""
    found: dict[str, list[str]] = {
        "gptcache_qqp": [row[side] for row in rows(data / "gptcache_qqp/norm_pairs.jsonl") for side in ("a", "b")],
        "banking77": [row["text"] for row in rows(data / "banking77/norm_clusters.jsonl")],
        "clinc150": [row["text"] for row in rows(data / "clinc150/norm_clusters.jsonl")],
        "osschat": [row["text"] for row in rows(data / "osschat_clusters/norm_clusters.jsonl")],
        "search_queries": [],
        "llm_prompts": [],
        "simclue_zh": [row[side] for row in rows(data / "simclue_zh/norm_pairs.jsonl") for side in ("a", "b")],
    }
    for name, column in (("topics.dpr.nq.test.txt", 0), ("topics.msmarco-passage.dev-subset.txt", 1)):
        lines = (data / "search_queries" / name).read_text("utf-8").splitlines()
        found["search_queries"] += [line.split("\t")[column].strip() for line in lines if "\t" in line]
    prompts = data / "llm_prompts"
    found["llm_prompts"] += [row["turns"][0]["content"] for row in rows(prompts / "arena_hard_v0.1_question.jsonl")]
    found["llm_prompts"] += [row["turns"][0] for row in rows(prompts / "mt_bench_question.jsonl")]
    for row in rows(prompts / "user_oriented_instructions.jsonl"):
        given = row["instances"][0]["input"]
        found["llm_prompts"].append(f"{row['instruction']}\n\n{given}" if given else row["instruction"])
    return {name: list(dict.fromkeys(some)) for name, some in found.items()}


def which(text: str) -> str:
    """The rule that declines a text, or `eligible`."""
    if judge(ASKED, text) is None:
        return "eligible"
    for rule in RULES:
        if judge(ASKED, text, off=frozenset(other.name for other in RULES if other is not rule)) is not None:
            return rule.name
    raise AssertionError("no rule alone declines what all of them do")


WORDING = ("empty", "length", "freshness", "day", "own-state", "action", "wish")


def table_of_rules(sets: dict[str, list[str]]) -> None:
    print("| set | texts | declined | " + " | ".join(WORDING) + " | µs a text |")
    print("|---|" + "---|" * (len(WORDING) + 3))
    for name, some in sets.items():
        counts = Counter(which(text) for text in some)
        started = time.perf_counter()
        for text in some:
            judge(ASKED, text)
        spent = (time.perf_counter() - started) / len(some)
        shares = [f"{100 * counts[rule] / len(some):.2f} %" for rule in WORDING]
        declined = 1 - counts["eligible"] / len(some)
        print(f"| {name} | {len(some):,} | {100 * declined:.2f} % | " + " | ".join(shares) + f" | {spent * 1e6:.0f} |")


def show(sets: dict[str, list[str]], rule: str, *, samples: int, seed: int) -> None:
    for name, some in sets.items():
        chosen = [text for text in some if which(text) == rule]
        print(f"\n## {name}: {len(chosen)} of {len(some)} {rule}")
        for text in random.Random(seed).sample(chosen, min(samples, len(chosen))):  # noqa: S311 - a sample to read
            print("-", " ".join(text.split())[:160])


def clinc_by_intent(data: Path) -> None:
    """CLINC150's intents say what is an action or a caller's own state; what the rules make of them."""
    wanted: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for row in rows(data / "clinc150/norm_clusters.jsonl"):
        total[row["cluster"]] += 1
        wanted[row["cluster"]] += which(row["text"]) != "eligible"
    print("\n| intent | n | declined |\n|---|---|---|")
    for intent in sorted(total, key=lambda i: -wanted[i] / total[i]):
        print(f"| {intent} | {total[intent]} | {100 * wanted[intent] / total[intent]:.0f} % |")
