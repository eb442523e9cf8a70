"""What the rules of the semantic tier decline, and which turns of a conversation they call self-contained.

    python -m benchmarks.eligibility --data DIR [--show RULE] [--samples 50] [--seed 0] [--embed]

`DIR` holds the labelled sets, one folder each. Markdown tables on stdout. `--show`
prints samples of the texts that a rule declined (or `eligible`: of those that
none did) instead. `--embed` adds the figures that need an embedder.
"""

import argparse
import asyncio
import json
import math
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from backends import registry
from models.request import Request
from service.caching.context import leans_on
from service.caching.eligibility import RULES, judge
from service.caching.identity import Question, asked
from service.caching.passages import cut

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


def interval(count: int, total: int) -> str:
    """A share with its Wilson interval at 95 %."""
    if not total:
        return "-"
    z, share = 1.96, count / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return f"{100 * share:.1f} % [{100 * max(0.0, middle - half):.1f}, {100 * (middle + half):.1f}]"


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(" ?.!")


def table_of_turns(data: Path) -> None:
    """CANARD: turns as they were asked, and as a person rewrote them to stand alone."""
    turns = list(rows(data / "canard/norm_multiturn.jsonl"))
    leaning = [turn for turn in turns if _plain(turn["utterance"]) != _plain(turn["resolved"])]
    alone = [turn for turn in turns if _plain(turn["utterance"]) == _plain(turn["resolved"])]
    traps = list(rows(data / "canard/norm_mt_traps.jsonl"))

    def passes(text: str, history: Sequence[str]) -> bool:
        return leans_on(text, "\n".join(history)) is None

    passed = sum(passes(turn["utterance"], turn["history"]) for turn in leaning)
    rewritten = sum(not passes(turn["resolved"], turn["history"]) for turn in leaning)
    bare = sum(not passes(turn["resolved"], ()) for turn in leaning)
    flagged = sum(not passes(turn["utterance"], turn["history"]) for turn in alone)
    hits = sum(
        passes(trap["utterance_a"], trap["history_a"]) and passes(trap["utterance_b"], trap["history_b"])
        for trap in traps
    )
    print("\n| turns | n | share |\n|---|---|---|")
    print(f"| same string, other context, both called self-contained | {len(traps)} | {interval(hits, len(traps))} |")
    print(f"| context-dependent, called self-contained | {len(leaning)} | {interval(passed, len(leaning))} |")
    print(f"| rewritten to stand alone, called dependent | {len(leaning)} | {interval(rewritten, len(leaning))} |")
    print(f"| the same without their history | {len(leaning)} | {interval(bare, len(leaning))} |")
    print(f"| left as they were by the rewriter, called dependent | {len(alone)} | {interval(flagged, len(alone))} |")
    reasons = Counter(leans_on(turn["utterance"], "\n".join(turn["history"])) or "-" for turn in leaning)
    print("\n| why dependent | turns |\n|---|---|")
    for reason, count in reasons.most_common():
        print(f"| {reason} | {count} |")


# As LangChain, LlamaIndex, Haystack, vendors' guides and people write them.
TEMPLATES = (
    """Use the following pieces of context to answer the question at the end. If you don't know the answer, say so.

{passages}

Question: {question}
Helpful Answer:""",
    """Context information is below.
---------------------
{passages}
---------------------
Given the context information and not prior knowledge, answer the query.
Query: {question}
Answer: """,
    "Given the following information, answer the question.\n\nContext:\n{passages}\n\nQuestion: {question}?",
    '<documents>\n<document index="1">\n{passages}\n</document>\n</documents>\n\n{question}',
    "<context>{passages}</context>\n<question>{question}</question>",
    "{question}\n\nUse these sources and cite them:\n[1] {passages}",
    "Answer the question based on the context below.\n\nContext: {passages}\n\n{question}",
    "Question: {question}\nContext: {passages}\nAnswer:",
    'Answer from this text only.\n\n"""\n{passages}\n"""\n\n{question}',
)


def table_of_prompts(data: Path, sets: dict[str, list[str]], *, seed: int) -> None:
    """Questions of CANARD in common templates with answers of other dialogues as passages; and plain texts."""
    turns = list(rows(data / "canard/norm_multiturn.jsonl"))
    chance = random.Random(seed)  # noqa: S311 - a sample
    print("\n| template | n | question found | something else taken | unclear |\n|---|---|---|---|---|")
    for number, template in enumerate(TEMPLATES, 1):
        outcomes: Counter[str] = Counter()
        for turn in chance.sample(turns, 400):
            passages = "\n\n".join(chance.choice(turns)["history"][-1] for _ in range(chance.randint(1, 4)))
            question = turn["resolved"].strip()
            found = cut(template.format(passages=passages, question=question))
            taken = None if found is None else found.question.rstrip("? ")
            outcomes["unclear" if taken is None else "found" if taken == question.rstrip("? ") else "other"] += 1
        shares = " | ".join(interval(outcomes[name], 400) for name in ("found", "other", "unclear"))
        print(f"| {number} | 400 | {shares} |")
    print("\n| plain texts | n | whole | cut | unclear |\n|---|---|---|---|---|")
    for name, some in sets.items():
        cuts = Counter("unclear" if (found := cut(text)) is None else found.layout for text in some)
        whole, unclear = cuts["whole"], cuts["unclear"]
        counted = [f"{100 * count / len(some):.2f} %" for count in (whole, len(some) - whole - unclear, unclear)]
        print(f"| {name} | {len(some):,} | " + " | ".join(counted) + " |")


async def table_of_conversations(data: Path) -> None:
    """MeanCache's two-turn chats: who is answered from whom, with a plain cosine threshold on each turn.

    Each duplicate conversation is asked of a cache that holds all originals;
    right is its own original. Then every follow-up is asked again under
    another first question, where nothing is right.
    """
    chats = [
        (row["u0"], row["u1"], row["u0_duplicate"], row["u1_duplicate"], row["system_q0"])
        for row in rows(data / "meancache_contextual/norm_multiturn_dup.jsonl")
    ]
    chats = list({(chat[0], chat[1]): chat for chat in chats}.values())
    embedder = registry.create("embedding", "onnx")
    await embedder.load()
    distinct = sorted({text for chat in chats for text in chat[:4]})
    vectors = dict(zip(distinct, [(await embedder.embed([t], role="query"))[0] for t in distinct], strict=True))
    await embedder.close()
    print("\n| context | threshold | recall on duplicates | precision | hits under another first question |")
    print("|---|---|---|---|---|")
    for mode in ("last-turn", "last-turn-if-self-contained", "full", "parents"):
        for threshold in (0.6, 0.7, 0.75, 0.8, 0.9):
            right = wrong = traps = 0
            for at, (_, _, first, follow, _) in enumerate(chats):
                hit = _answered(chats, vectors, first, follow, mode, threshold)
                right += hit is not None and _same(chats, vectors, hit, at)
                wrong += hit is not None and not _same(chats, vectors, hit, at)
                other = chats[(at + 7) % len(chats)]
                trap = _answered(chats, vectors, other[2], chats[at][3], mode, threshold)
                traps += trap is not None and not _same(chats, vectors, trap, (at + 7) % len(chats))
            served = right + wrong + traps
            precision = interval(right, served) if served else "-"
            print(f"| {mode} | {threshold} | {interval(right, len(chats))} | {precision} | {traps} of {len(chats)} |")


# Of two first questions in the set that are one topic in other words ("the history of the Internet").
_ONE_TOPIC = 0.75


def _same(chats: Sequence[tuple[str, ...]], vectors: dict[str, Any], one: int, other: int) -> bool:
    """Whether two chats ask one thing: some topics of the set occur several times, with the same follow-up."""
    if one == other:
        return True
    topic = float(np.dot(vectors[chats[one][0]], vectors[chats[other][0]]))
    return topic >= _ONE_TOPIC and (chats[one][1] == chats[other][1] or chats[one][3] == chats[other][3])


def _answered(
    chats: Sequence[tuple[str, ...]],
    vectors: dict[str, Any],
    first: str,
    follow: str,
    mode: str,
    threshold: float,
) -> int | None:
    """Which stored chat's follow-up answers; None for a miss. Parents are the nearest first turn's."""
    keeping: Any = "full" if mode == "parents" else mode

    def entry(question: str) -> tuple[int, float]:
        scores = [float(np.dot(vectors[question], vectors[chat[0]])) for chat in chats]
        best = max(range(len(chats)), key=lambda i: (scores[i], -i))
        return best, scores[best]

    def turn(u0: str, a0: str, u1: str, parent: str) -> Question | str:
        said = [("user", u0), ("assistant", a0), ("user", u1)]
        body = {"messages": [{"role": role, "content": text} for role, text in said]}
        return asked(body, (), keeping=keeping, parents=(parent,) if mode == "parents" else ())

    nearest, score = entry(first)
    known = score >= threshold
    # Whoever was answered from an entry has its text in their history.
    looked = turn(first, chats[nearest][4] if known else "x", follow, chats[nearest][0] if known else first)
    best: tuple[float, int] | None = None
    for at, chat in enumerate(chats):
        stored = turn(chat[0], chat[4], chat[1], chat[0])
        if not isinstance(stored, Question) or not isinstance(looked, Question):
            continue
        similarity = float(np.dot(vectors[follow], vectors[chat[1]]))
        if stored.namespace == looked.namespace and similarity >= threshold and (best is None or similarity > best[0]):
            best = (similarity, at)
    return None if best is None else best[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--show", metavar="RULE")
    parser.add_argument("--samples", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--embed", action="store_true")
    options = parser.parse_args()
    sets = texts(options.data)
    if options.show:
        show(sets, options.show, samples=options.samples, seed=options.seed)
        return
    table_of_rules(sets)
    table_of_turns(options.data)
    table_of_prompts(options.data, sets, seed=options.seed)
    clinc_by_intent(options.data)
    if options.embed:
        asyncio.run(table_of_conversations(options.data))


if __name__ == "__main__":
    main()
