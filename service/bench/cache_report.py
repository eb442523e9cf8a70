"""What the benchmark of cache policies found: figures with intervals, a table, and a page to read."""

import html
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.bench.cache_policies import CHARGES, PEERS, Outcome, Pairs, Stream
from service.caching.certificate import upper_bound

Json = dict[str, Any]

POINTS = 40  # of a curve
_BINS = 35
_LEAST_COSINE = 0.3
_RESAMPLED = 1_000


class Figures(NamedTuple):
    """Of one policy on one stream. Money in dollars; `saved` is what right hits spared. `hits_at` and `wrong_at` count
    up to each of `POINTS` evenly spaced requests."""

    requests: int
    exact: int
    semantic: int
    wrong: int
    wrong_exact: int
    reusable: int
    tokens: float
    tokens_saved: float
    spent: float
    saved: float
    charged: float
    embeddings: float
    audits: float
    hits_at: NDArray[np.float64]
    wrong_at: NDArray[np.float64]
    certificate: str


def figures(stream: Stream, outcome: Outcome) -> Figures:
    hit = outcome.hits > 0
    right = hit & ~outcome.wrong
    at = np.linspace(0, len(hit), POINTS + 1)[1:].round().astype(int) - 1
    return Figures(
        requests=len(hit),
        exact=int((outcome.hits == 1).sum()),
        semantic=int((outcome.hits == 2).sum()),
        wrong=int(outcome.wrong.sum()),
        wrong_exact=int((outcome.wrong & (outcome.hits == 1)).sum()),
        reusable=int(stream.reusable.sum()),
        tokens=float(stream.tokens.sum()),
        tokens_saved=float(stream.tokens[right].sum()),
        spent=float(stream.cost.sum()),
        saved=float(stream.cost[right].sum()),
        charged=float(stream.cost[outcome.wrong].sum()),
        embeddings=float(stream.embedding[outcome.looked].sum()),
        audits=outcome.audited * float(stream.cost[outcome.hits == 2].sum()),
        hits_at=np.cumsum(hit)[at].astype(np.float64),
        wrong_at=np.cumsum(outcome.wrong)[at].astype(np.float64),
        certificate=outcome.certificate,
    )


def summary(name: str, family: str, of_seeds: Sequence[Figures]) -> Json:
    """Shares over all seeds together; `[from, to]` are 95 % of a bootstrap over seeds, null for a single seed.

    `wrong_at_most` bounds the share of wrong answers among semantic hits by
    their count (Clopper and Pearson, 95 %, one-sided). `net` is the share of all
    money saved after embeddings and audits, with a wrong hit charged at so many
    times what its request costs.
    """

    def column(of: Callable[[Figures], float]) -> NDArray[np.float64]:
        return np.array([of(one) for one in of_seeds], np.float64)

    def share(of: Callable[[Figures], float], all_of: Callable[[Figures], float]) -> Json:
        part, whole = column(of), column(all_of)
        return {"share": _ratio(part.sum(), whole.sum()), "interval": _interval(part, whole)}

    semantic, wrong = sum(one.semantic for one in of_seeds), sum(one.wrong - one.wrong_exact for one in of_seeds)
    requests = sum(one.requests for one in of_seeds)
    at = np.linspace(0, of_seeds[0].requests, POINTS + 1)[1:]
    hits_at = np.stack([one.hits_at for one in of_seeds])
    wrong_at = np.stack([one.wrong_at for one in of_seeds])
    return {
        "policy": name,
        "family": family,
        "seeds": len(of_seeds),
        "requests": requests,
        "hits": share(lambda one: one.exact + one.semantic, lambda one: one.requests),
        "exact": share(lambda one: one.exact, lambda one: one.requests),
        "semantic": share(lambda one: one.semantic, lambda one: one.requests),
        "captured": share(lambda one: one.exact + one.semantic - one.wrong, lambda one: one.reusable),
        "wrong_of_all": share(lambda one: one.wrong, lambda one: one.requests),
        "wrong_of_hits": share(lambda one: one.wrong, lambda one: one.exact + one.semantic),
        "wrong_of_semantic": share(lambda one: one.wrong - one.wrong_exact, lambda one: one.semantic),
        "wrong_at_most": upper_bound(wrong, semantic) if semantic else None,
        "semantic_hits": semantic,
        "wrong_semantic_hits": wrong,
        "tokens_saved": share(lambda one: one.tokens_saved, lambda one: one.tokens),
        "net": {
            str(times): share(_net(times), lambda one: one.spent) for times in CHARGES
        },
        "dollars_a_thousand": {
            "spent": 1000 * float(column(lambda one: one.spent).sum()) / requests,
            "saved": 1000 * float(column(lambda one: one.saved).sum()) / requests,
            "embeddings": 1000 * float(column(lambda one: one.embeddings).sum()) / requests,
            "audits": 1000 * float(column(lambda one: one.audits).sum()) / requests,
        },
        "certificates": dict(Counter(one.certificate for one in of_seeds if one.certificate)),
        "curve": {
            "requests": at.round().astype(int).tolist(),
            "hits": _band(hits_at / at),
            "wrong": _band(wrong_at / at),
        },
    }  # fmt: skip


def _net(times: int) -> Callable[[Figures], float]:
    return lambda one: one.saved - one.embeddings - one.audits - times * one.charged


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _interval(part: NDArray[np.float64], whole: NDArray[np.float64]) -> list[float] | None:
    """Of a ratio of sums over seeds."""
    if len(part) < 2 or not whole.sum():
        return None
    drawn = _draws(len(part))
    below = whole[drawn].sum(axis=1)
    ratios = part[drawn].sum(axis=1)[below > 0] / below[below > 0]
    return [float(bound) for bound in np.quantile(ratios, (0.025, 0.975))]


def _band(of_seeds: NDArray[np.float64]) -> Json:
    mean: list[float] = of_seeds.mean(axis=0).tolist()
    if len(of_seeds) < 2:
        return {"mean": mean, "from": mean, "to": mean}
    low, high = np.quantile(of_seeds[_draws(len(of_seeds))].mean(axis=1), (0.025, 0.975), axis=0)
    return {"mean": mean, "from": low.tolist(), "to": high.tolist()}


def _draws(seeds: int) -> NDArray[np.int64]:
    return np.random.default_rng(1).integers(seeds, size=(_RESAMPLED, seeds))


def histograms(of_seeds: Sequence[Pairs]) -> Json:
    """Counts of right and wrong pairs: by cosine of the nearest, by P of the likeliest."""

    def counted(values: Iterable[NDArray[np.float64]], right: Iterable[NDArray[np.bool_]], least: float) -> Json:
        every, fits = np.concatenate(list(values)), np.concatenate(list(right))
        edges = np.linspace(least, 1.0, _BINS + 1)
        every = np.clip(every, least, 1.0)
        return {
            "edges": edges.tolist(),
            "right": np.histogram(every[fits], edges)[0].tolist(),
            "wrong": np.histogram(every[~fits], edges)[0].tolist(),
        }

    return {
        "cosine": counted((one.cosines for one in of_seeds), (one.nearest_right for one in of_seeds), _LEAST_COSINE),
        "verifier": counted((one.chances for one in of_seeds), (one.likeliest_right for one in of_seeds), 0.0),
    }


def added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total.most_common())


# --- the table


def table(result: Json) -> str:
    return "\n".join(_lines(result))


def _lines(result: Json) -> Iterator[str]:
    about = result["about"]
    yield (
        f"{about['data']}, profile {about['profile']}: {about['requests']:,} requests, {about['seeds']} seeds,"
        f" each of up to {about['pool']:,} of {about['questions']:,} questions with {about['answers']:,} answers"
    )
    if about["unread"]:
        yield "skipped lines: " + ", ".join(f"{count:,} {reason}" for reason, count in about["unread"].items())
        yield from (f"  {place}" for place in about["named"])
    yield f"an answer that was given before is asked for in {_percent(about['reusable'])} of requests"
    if about["refused"]:
        refused = ", ".join(f"{reason} {count:,}" for reason, count in about["refused"].items())
        yield f"not compared by ours: {refused}"
    yield ""
    yield (
        f"{'policy':<16}{'hits':>8}{'':<17}{'exact':>8}{'semantic':>10}{'captured':>10}"
        f"{'wrong/semantic':>16}{'':>17}{'wrong/all':>11}{'tokens':>8}"
        + "".join(f"{f'net {times}×':>9}" for times in CHARGES)
    )
    for row in result["policies"]:
        yield (
            f"{row['policy']:<16}{_percent(row['hits']['share']):>8}{_between(row['hits']['interval']):>17}"
            f"{_percent(row['exact']['share']):>8}{_percent(row['semantic']['share']):>10}"
            f"{_percent(row['captured']['share']):>10}{_percent(row['wrong_of_semantic']['share'], 2):>16}"
            f"{_between(row['wrong_of_semantic']['interval'], 2):>17}{_percent(row['wrong_of_all']['share'], 2):>11}"
            f"{_percent(row['tokens_saved']['share']):>8}"
            + "".join(f"{_percent(row['net'][str(times)]['share']):>9}" for times in CHARGES)
        )
        if row["certificates"]:
            told = ", ".join(f"{why} {count}" for why, count in row["certificates"].items())
            yield f"{'':<16}a limit of {about['limit']:.1%} in {row['seeds']} seeds: {told}"
    for left in result["left_out"]:
        yield f"left out: {left}"


def _percent(share: float | None, digits: int = 1) -> str:
    return "-" if share is None else f"{100 * share:.{digits}f} %"


def _between(interval: Sequence[float] | None, digits: int = 1) -> str:
    return "" if interval is None else f" ({100 * interval[0]:.{digits}f} to {100 * interval[1]:.{digits}f})"


# --- the page

_TITLES = {
    "off": "off", "exact": "exact only", "static": "one threshold", "gptcache": "GPTCache (.60)",
    "bifrost": "Bifrost (.80)", "redisvl": "RedisVL (.90)", "portkey": "Portkey (.95)", "vcache": "vCache",
    "ours": "Keepgate", "certified": "Keepgate, certified",
}  # fmt: skip
# Told apart by those who see few colours as well (Okabe and Ito 2008).
_COLOURS = {
    "off": "#999999", "exact": "#777777", "static": "#888888", "gptcache": "#d55e00", "bifrost": "#e69f00",
    "redisvl": "#cc79a7", "portkey": "#a6761d", "vcache": "#56b4e9", "ours": "#009e73", "certified": "#0072b2",
}  # fmt: skip
_WIDTH, _HEIGHT = 640, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 14, 46

_CLIPPED = ' clip-path="url(#inside)"'
# Of every plot: what is outside of its axes is not drawn.
_CLIP = (
    f'<svg width="0" height="0" style="position:absolute"><clipPath id="inside"><rect x="{_LEFT}" y="{_TOP - 2}"'
    f' width="{_WIDTH - _LEFT - _RIGHT}" height="{_HEIGHT - _TOP - _BOTTOM + 4}"/></clipPath></svg>'
)

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --text: #222; --back: #fff; }
@media (prefers-color-scheme: dark) { :root { --text: #ddd; --back: #181a1b; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 1340px;
  margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.1em; margin: 0 0 .2em; } p { margin: .2em 0 .8em; max-width: 60em; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 2em; }
svg { width: 100%; height: auto; } svg text { fill: var(--text); font-size: 12px; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .2em .7em; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
td:first-child, th:first-child { text-align: left; } tr.ours { font-weight: 600; }
small { opacity: .75; } .key { display: inline-block; margin-right: 1.2em; white-space: nowrap; }
.key i { display: inline-block; width: 1.1em; height: .3em; margin-right: .4em; vertical-align: middle; }
"""


class Line(NamedTuple):
    """Points from left to right; `band` are the lower and upper edge around them, `dots` draws each point with a
    label."""

    name: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]
    band: tuple[Sequence[float], Sequence[float]] | None = None
    dots: Sequence[str] = ()
    dashed: bool = False


def page(result: Json) -> str:
    """One HTML page that loads nothing: the table, and what it shows as curves."""
    about = result["about"]
    rows = [row for row in result["policies"] if row["policy"] == row["family"]]
    title = f"Cache policies on {about['data']}, profile {about['profile']}"
    plots = [
        _figure(
            "Hit rate against requests",
            "Share of all requests so far that were answered from the cache, right or wrong. Bands: 95 % over seeds.",
            _plot([_curve(row, "hits") for row in rows], "requests", "hits", whole_x=True),
        ),
        _figure(
            "Wrong hits against requests",
            "Share of all requests so far that were answered with another question's answer.",
            _plot([_curve(row, "wrong") for row in rows], "requests", "wrong", whole_x=True),
        ),
        _figure(
            "Precision against hit ratio",
            "Up and to the right is better. Points of a line are cuts of one rule; of a peer it is the default.",
            _plot(_tradeoffs(result["policies"]), "share of requests hit", "share of hits that were right"),
        ),
        _figure(
            "Money saved, net",
            "Share of the bill saved, after embeddings and audits, if a wrong hit costs so many times its request.",
            _plot([_cost(row) for row in rows], "a wrong hit costs … requests", "of the bill", whole_x=True, least=-1),
        ),
        _figure(
            "Tokens saved",
            "Share of all tokens that right hits spared.",
            _bars([(_TITLES[row["family"]], row["tokens_saved"]["share"], _COLOURS[row["family"]]) for row in rows]),
        ),
    ]
    histogram = result["histograms"]
    peers = [(_TITLES[name], cut, _COLOURS[name]) for name, (cut, _) in PEERS.items()]
    plots.append(
        _figure(
            "Cosine of the nearest stored question",
            "Right and wrong pairs, in Keepgate's scope, and where the peers cut. What lies right of a cut is served.",
            _histogram(histogram["cosine"], peers, "cosine"),
        )
    )
    if about["cut"] is not None:
        ours = [("the shipped cut", about["cut"], _COLOURS["ours"])]
        plots.append(
            _figure(
                "The verifier's P of the likeliest stored question",
                "The same requests, as the verifier sees them (0: vetoed, or too far off to be looked at).",
                _histogram(histogram["verifier"], ours, "P that the stored answer serves"),
            )
        )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"{_CLIP}<h1>{html.escape(title)}</h1>{_introduction(about)}{_html_table(result)}"
        f'<p>{_legend(result["policies"])}</p><div class="plots">{"".join(plots)}</div></body></html>\n'
    )


def _introduction(about: Json) -> str:
    said = (
        f"{about['seeds']} streams of {about['requests']:,} requests, each made of up to {about['pool']:,} of "
        f"{about['questions']:,} labelled questions with {about['answers']:,} answers. "
        f"{_percent(about['reusable'])} of requests ask for an answer that was given before. A hit is judged by its "
        "answer. Peers are modelled by what they compare and where they cut, as they ship; all run in the same process "
        "on the same embeddings."
    )
    return f"<p>{html.escape(said)}</p>"


def _html_table(result: Json) -> str:
    head = "".join(
        f"<th>{html.escape(name)}</th>"
        for name in (
            "policy", "hits", "exact", "semantic", "reusable captured", "wrong of semantic", "at most", "wrong of all",
            "tokens saved", *(f"net, wrong at {times}×" for times in CHARGES),
        )
    )  # fmt: skip
    body = []
    for row in result["policies"]:
        cells = [
            row["policy"] if row["policy"] != row["family"] else _TITLES[row["family"]],
            _cell(row["hits"]), _cell(row["exact"]), _cell(row["semantic"]), _cell(row["captured"]),
            _cell(row["wrong_of_semantic"], 2), _percent(row["wrong_at_most"], 2), _cell(row["wrong_of_all"], 2),
            _cell(row["tokens_saved"]), *(_cell(row["net"][str(times)]) for times in CHARGES),
        ]  # fmt: skip
        kind = ' class="ours"' if row["policy"] in ("ours", "certified") else ""
        body.append(f"<tr{kind}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(body)}</table></div>'


def _cell(found: Json, digits: int = 1) -> str:
    between = _between(found["interval"], digits)
    return _percent(found["share"], digits) + (f"<small>{between}</small>" if between else "")


def _legend(rows: Sequence[Json]) -> str:
    return "".join(
        f'<span class="key"><i style="background:{_COLOURS[family]}"></i>{_TITLES[family]}</span>'
        for family in dict.fromkeys(row["family"] for row in rows)
    )


def _figure(title: str, text: str, drawing: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2><p><small>{html.escape(text)}</small></p>{drawing}</section>"


def _curve(row: Json, of: str) -> Line:
    band = row["curve"][of]
    name = row["family"]
    return Line(_TITLES[name], _COLOURS[name], row["curve"]["requests"], band["mean"], (band["from"], band["to"]))


def _cost(row: Json) -> Line:
    shares = [row["net"][str(times)]["share"] for times in CHARGES]
    return Line(_TITLES[row["family"]], _COLOURS[row["family"]], CHARGES, shares)


def _tradeoffs(rows: Sequence[Json]) -> list[Line]:
    lines = []
    for family in dict.fromkeys(row["family"] for row in rows):
        of_family = [row for row in rows if row["family"] == family and row["hits"]["share"]]
        of_family.sort(key=lambda row: float(row["hits"]["share"]))
        if of_family:
            lines.append(
                Line(
                    _TITLES[family],
                    _COLOURS[family],
                    [row["hits"]["share"] for row in of_family],
                    [1 - row["wrong_of_hits"]["share"] for row in of_family],
                    dots=[row["policy"] for row in of_family],
                    dashed=family == "static",
                )
            )
    return lines


def _plot(lines: Sequence[Line], x_name: str, y_name: str, *, whole_x: bool = False, least: float | None = None) -> str:
    """Shares on the y axis. `least` cuts off what falls below it."""
    xs = [x for line in lines for x in line.x] or [0.0, 1.0]
    ys = [y for line in lines for y in (*line.y, *(line.band[1] if line.band else ()))] or [0.0, 1.0]
    x_from, x_to = 0.0, max(xs) or 1.0
    y_from, y_to = min(0.0, *ys) if not any(line.dots for line in lines) else min(ys), max(*ys, 1e-6)
    if least is not None:
        y_from = max(y_from, least)
    if y_to - y_from < 1e-6:
        y_from = y_to - 1e-3

    def place(x: float, y: float) -> str:
        across = _LEFT + (x - x_from) / (x_to - x_from) * (_WIDTH - _LEFT - _RIGHT)
        down = _TOP + (y_to - y) / (y_to - y_from) * (_HEIGHT - _TOP - _BOTTOM)
        return f"{across:.1f},{down:.1f}"

    parts = [_axes(x_from, x_to, y_from, y_to, x_name, y_name, shares=not whole_x)]
    for line in lines:
        tip = f"<title>{html.escape(line.name)}</title>"
        if line.band:
            edge = [place(x, y) for x, y in zip(line.x, line.band[0], strict=True)]
            back = [place(x, y) for x, y in zip(line.x, line.band[1], strict=True)]
            around = " ".join([*edge, *reversed(back)])
            parts.append(f'<polygon points="{around}" fill="{line.colour}" opacity=".15"{_CLIPPED}/>')
        points = [place(x, y) for x, y in zip(line.x, line.y, strict=True)]
        style = _CLIPPED + (' stroke-dasharray="5 4"' if line.dashed else "")
        parts.append(
            f'<polyline points="{" ".join(points)}" fill="none" stroke="{line.colour}" stroke-width="2"{style}>'
            f"{tip}</polyline>"
        )
        for point, label in zip(points, line.dots, strict=False):
            across, down = point.split(",")
            parts.append(
                f'<circle cx="{across}" cy="{down}" r="4" fill="{line.colour}"><title>{html.escape(label)}</title>'
                "</circle>"
            )
    return _svg(parts)


def _histogram(counts: Json, cuts: Sequence[tuple[str, float, str]], x_name: str) -> str:
    """Right pairs upwards, wrong ones downwards: each as a share of all pairs, in the square root."""
    edges: list[float] = counts["edges"]
    total = max(sum(counts["right"]) + sum(counts["wrong"]), 1)
    tall = max(*counts["right"], *counts["wrong"], 1) / total
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2

    def across(value: float) -> float:
        return _LEFT + (value - edges[0]) / (edges[-1] - edges[0]) * (_WIDTH - _LEFT - _RIGHT)

    parts = []
    for side, colour, up in (("right", "#0072b2", True), ("wrong", "#d55e00", False)):
        for at, count in enumerate(counts[side]):
            high = (count / total / tall) ** 0.5 * (middle - _TOP)
            left, right = across(edges[at]), across(edges[at + 1])
            parts.append(
                f'<rect x="{left:.1f}" y="{middle - high if up else middle:.1f}" width="{max(right - left - 1, 1):.1f}"'
                f' height="{high:.1f}" fill="{colour}"><title>{count:,} {side}, {edges[at]:.2f} to {edges[at + 1]:.2f}'
                "</title></rect>"
            )
    for at, (name, cut, colour) in enumerate(cuts):
        x = across(min(max(cut, edges[0]), edges[-1]))
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" stroke="{colour}" stroke-width="2"'
            f' stroke-dasharray="6 3"/><text x="{x - 5:.1f}" y="{_TOP + 12 + 15 * at}" text-anchor="end">'
            f"{html.escape(name)}</text>"
        )
    parts += [
        f'<text x="{across(value):.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{value:.2f}</text>'
        for value in np.linspace(edges[0], edges[-1], 8).tolist()
    ]
    parts.append(
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{middle}" y2="{middle}" stroke="#888"/>'
        f'<text x="8" y="{middle - 30:.0f}">right</text><text x="8" y="{middle + 40:.0f}">wrong</text>'
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{html.escape(x_name)}'
        " (heights: square roots of counts)</text>"
    )
    return _svg(parts)


def _bars(bars: Sequence[tuple[str, float | None, str]]) -> str:
    most = max((share or 0.0 for _, share, _ in bars), default=0.0) or 1.0
    step = (_HEIGHT - _TOP - 10) / max(len(bars), 1)
    parts = []
    for at, (name, share, colour) in enumerate(bars):
        y, wide = _TOP + at * step, (share or 0.0) / most * (_WIDTH - 240)
        parts.append(
            f'<text x="150" y="{y + step / 2 + 4:.1f}" text-anchor="end">{html.escape(name)}</text>'
            f'<rect x="160" y="{y + 3:.1f}" width="{wide:.1f}" height="{step - 8:.1f}" fill="{colour}"/>'
            f'<text x="{166 + wide:.1f}" y="{y + step / 2 + 4:.1f}">{_percent(share)}</text>'
        )
    return _svg(parts)


def _axes(x_from: float, x_to: float, y_from: float, y_to: float, x_name: str, y_name: str, *, shares: bool) -> str:
    parts = []
    for at in range(6):
        down = _TOP + at / 5 * (_HEIGHT - _TOP - _BOTTOM)
        value = y_to - at / 5 * (y_to - y_from)
        digits = 0 if y_to - y_from > 0.2 else 1 if y_to - y_from > 0.02 else 2
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{down:.1f}" y2="{down:.1f}" stroke="#8884"/>'
            f'<text x="{_LEFT - 6}" y="{down + 4:.1f}" text-anchor="end">{_percent(value, digits)}</text>'
        )
        across = _LEFT + at / 5 * (_WIDTH - _LEFT - _RIGHT)
        mark = x_from + at / 5 * (x_to - x_from)
        shown = _percent(mark, 0) if shares else f"{mark:,.0f}"
        parts.append(f'<text x="{across:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{shown}</text>')
    parts.append(
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{html.escape(x_name)}</text>'
        f'<text x="{_LEFT + 6}" y="{_TOP + 12}">{html.escape(y_name)}</text>'
    )
    return "".join(parts)


def _svg(parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(parts)}</svg>'
