"""What is counted, added up over the processes of a group, in the formats Prometheus reads.

Counting is plain dictionaries, because a request may not pay for more than a
few tenths of a microsecond a count; prometheus_client writes the formats. One
thread counts: the event loop's. What another thread counts comes in by
`Counter.follow`.
"""

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from operator import add
from typing import Generic, TypeVar

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

Labels = tuple[str, ...]
_Value = TypeVar("_Value")

OTHER = "other"
"""Stands for the label values beyond a limit."""

_log = logging.getLogger("keepgate.telemetry")

_SERIES = 2_000
_VALUE_LENGTH = 128
# Labels that clients fill with what they like. All others come from the configuration.
_OPEN = frozenset({"model"})

_LOOKUP = (5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_OVERHEAD = (5e-5, 1e-4, 1.5e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)
_FIRST_TOKEN = (1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_REQUEST = (5e-4, *_FIRST_TOKEN, 120.0, 300.0, 600.0)
_SIMILARITY = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.75, *(percent / 100 for percent in range(80, 100)), 0.995, 1.0)


class Metrics:
    """Every metric of a process, one attribute each. docs/metrics.md describes them to operators."""

    def __init__(self) -> None:
        self.requests = Counter(
            "keepgate_requests_total",
            "Requests answered, by the model asked for and the upstream that answered.",
            ("endpoint", "model", "upstream", "status", "cache"),
        )
        self.request_seconds = Histogram(
            "keepgate_request_seconds",
            "Time from the request's arrival to the last byte of its answer.",
            ("endpoint", "cache"),
            bounds=_REQUEST,
        )
        self.overhead_seconds = Histogram(
            "keepgate_overhead_seconds",
            "Time spent in the gateway until the first byte left, waiting for an upstream excluded.",
            ("endpoint", "cache"),
            bounds=_OVERHEAD,
        )
        self.time_to_first_token_seconds = Histogram(
            "keepgate_time_to_first_token_seconds",
            "Time from a streamed request's arrival to the start of its answer.",
            ("endpoint", "cache"),
            bounds=_FIRST_TOKEN,
        )
        self.cache_lookups = Counter(
            "keepgate_cache_lookups_total", "Lookups in a cache tier.", ("endpoint", "tier", "result")
        )
        self.cache_audits = Counter(
            "keepgate_cache_audits_total",
            "Semantic hits that were asked upstream as well, by what came of it.",
            ("endpoint", "outcome"),
        )
        self.cache_refreshes = Counter(
            "keepgate_cache_refreshes_total",
            "Entries asked for anew, by whether the answer had changed.",
            ("endpoint", "outcome"),
        )
        self.cache_similarity = Histogram(
            "keepgate_cache_similarity",
            "Cosine similarity of semantic hits, of the nearest rejected entry on misses, and of shadow hits.",
            ("endpoint", "result"),
            bounds=_SIMILARITY,
        )
        self.cache_lookup_seconds = Histogram(
            "keepgate_cache_lookup_seconds", "Time of a lookup in a cache tier.", ("tier",), bounds=_LOOKUP
        )
        self.cache_entries = Gauge("keepgate_cache_entries", "Entries in the cache.", ("endpoint",), merge=max)
        self.tokens = Counter(
            "keepgate_tokens_total", "Tokens of answers that came from an upstream.", ("endpoint", "model", "direction")
        )
        self.tokens_saved = Counter(
            "keepgate_tokens_saved_total",
            "Prompt and completion tokens of answers that cost no upstream call.",
            ("endpoint", "model", "tier"),
        )
        self.cost_usd = Counter("keepgate_cost_usd_total", "Spend at upstreams.", ("endpoint", "model"))
        self.cost_saved_usd = Counter(
            "keepgate_cost_saved_usd_total", "Spend that answers from the cache avoided.", ("endpoint", "model")
        )
        self.guardrail_actions = Counter(
            "keepgate_guardrail_actions_total", "What guardrails did.", ("rule", "detector", "action", "phase")
        )
        self.guardrail_seconds = Histogram(
            "keepgate_guardrail_seconds", "Time of a detector over one text.", ("detector",), bounds=_LOOKUP
        )
        self.upstream_attempts = Counter(
            "keepgate_upstream_attempts_total", "Calls of an upstream, by how they ended.", ("upstream", "outcome")
        )
        self.upstream_seconds = Histogram(
            "keepgate_upstream_seconds",
            "Time of a call of an upstream until its answer, or until its stream began.",
            ("upstream",),
            bounds=_REQUEST,
        )
        self.upstream_open = Gauge(
            "keepgate_upstream_open",
            "Credentials of an upstream that are not asked after failures in a row, but by probes.",
            ("upstream",),
            merge=max,
        )
        self.upstream_waiting = Gauge(
            "keepgate_upstream_waiting",
            "Requests that wait for a place at an upstream, or until one of its credentials has rested.",
            ("upstream",),
            merge=add,
        )
        self.fields_dropped = Counter(
            "keepgate_fields_dropped_total",
            "Fields of requests that were not sent on, because their meaning in the upstream's dialect is not known.",
            ("endpoint", "dialect"),
        )
        self.coalesced = Counter(
            "keepgate_coalesced_total", "Requests answered by an identical request's upstream call."
        )
        self.inflight = Gauge("keepgate_inflight", "Requests being answered now.", merge=add)
        self.degraded = Gauge(
            "keepgate_degraded",
            "1 while a component fails and the gateway works without it.",
            ("component",),
            merge=max,
        )
        self.reembedding_remaining = Gauge(
            "keepgate_reembedding_remaining",
            "Stored questions that are still to be embedded anew, for another embedder.",
            merge=max,
        )
        self.records_dropped = Counter(
            "keepgate_records_dropped_total", "Rows the request log lost because its sink was slow or failed."
        )
        families = list(vars(self).values())
        self._counters = {family.name: family for family in families if isinstance(family, Counter)}
        self._gauges = {family.name: family for family in families if isinstance(family, Gauge)}
        self._histograms = {family.name: family for family in families if isinstance(family, Histogram)}
        self._families: tuple[Counter | Gauge | Histogram, ...] = tuple(families)

    def snapshot(self) -> bytes:
        """Everything counted so far, for `absorb` and `render` in any process of this version."""
        return _encode(
            _Snapshot(
                {name: counter.state() for name, counter in self._counters.items()},
                {name: gauge.state() for name, gauge in self._gauges.items()},
                {name: histogram.state() for name, histogram in self._histograms.items()},
            )
        )

    def absorb(self, snapshot: bytes) -> None:
        """Adds what another process counted. Metrics this version does not have are left out.

        ValueError if the snapshot cannot be read.
        """
        other = _decode(snapshot)
        for name in other.counters.keys() & self._counters.keys():
            self._counters[name].absorb(other.counters[name])
        for name in other.gauges.keys() & self._gauges.keys():
            self._gauges[name].absorb(other.gauges[name])
        for name in other.histograms.keys() & self._histograms.keys():
            self._histograms[name].absorb(other.histograms[name])

    def collect(self) -> Iterator[Metric]:
        """What prometheus_client asks of a collector."""
        return (family.exposed() for family in self._families)


class _Family(Generic[_Value]):
    """One metric: its series by the values of its labels, no more than `limit` of them.

    Past the limit a new series has `other` for the labels that clients fill.
    What the gateway's own labels say (status, endpoint) is kept, so that a
    client with a thousand model names cannot hide errors from an alert. Past
    twice the limit everything new is `other`.
    """

    def __init__(self, name: str, documentation: str, labels: Labels = (), *, limit: int = _SERIES) -> None:
        self.name = name
        self.documentation = documentation
        self.labels = labels
        self._limit = limit
        self._series: dict[Labels, _Value] = {}

    def _admitted(self, labels: Labels) -> Labels:  # the series that counts for labels not seen before
        if len(labels) != len(self.labels):
            raise ValueError(f"{self.name} has labels {self.labels}, not {len(labels)} of them")
        # Control characters and lone surrogates would spoil every later scrape.
        labels = tuple(value if len(value) <= _VALUE_LENGTH and value.isprintable() else OTHER for value in labels)
        if len(self._series) < self._limit or labels in self._series:
            return labels
        labels = tuple(OTHER if name in _OPEN else value for name, value in zip(self.labels, labels, strict=True))
        if len(self._series) < 2 * self._limit or labels in self._series:
            return labels
        return (OTHER,) * len(labels)


class Counter(_Family[float]):
    """Only grows."""

    def __init__(self, name: str, documentation: str, labels: Labels = (), *, limit: int = _SERIES) -> None:
        super().__init__(name, documentation, labels, limit=limit)
        self._followed: list[Callable[[], int]] = []
        if not labels:
            self._series[()] = 0

    def add(self, labels: Labels, count: float = 1) -> None:
        try:
            self._series[labels] += count
        except KeyError:
            labels = self._admitted(labels)
            self._series[labels] = self._series.get(labels, 0) + count

    def follow(self, read: Callable[[], int]) -> None:
        """Adds a total kept elsewhere, read whenever this counter is; for counters without labels."""
        self._followed.append(read)

    def state(self) -> dict[Labels, float]:
        if not self._followed:
            return self._series
        return {(): self._series[()] + sum(read() for read in self._followed)}

    def absorb(self, series: Mapping[Labels, float]) -> None:
        for labels, count in series.items():
            self._series[labels] = self._series.get(labels, 0) + count

    def exposed(self) -> Metric:
        family = CounterMetricFamily(self.name, self.documentation, labels=self.labels)
        for labels, count in self.state().items():
            family.add_metric(labels, count)
        return family


class Gauge(_Family[float]):
    """Goes up and down. `merge` makes one value of two processes' values."""

    def __init__(
        self, name: str, documentation: str, labels: Labels = (), *, merge: Callable[[float, float], float]
    ) -> None:
        super().__init__(name, documentation, labels)
        self._merge = merge
        if not labels:
            self._series[()] = 0

    def set(self, labels: Labels, value: float) -> None:
        if labels not in self._series:
            labels = self._admitted(labels)
        self._series[labels] = value

    def add(self, labels: Labels, count: float = 1) -> None:
        try:
            self._series[labels] += count
        except KeyError:
            labels = self._admitted(labels)
            self._series[labels] = self._series.get(labels, 0) + count

    def state(self) -> dict[Labels, float]:
        return self._series

    def absorb(self, series: Mapping[Labels, float]) -> None:
        for labels, value in series.items():
            held = self._series.get(labels)
            self._series[labels] = value if held is None else self._merge(held, value)

    def exposed(self) -> Metric:
        family = GaugeMetricFamily(self.name, self.documentation, labels=self.labels)
        for labels, value in self._series.items():
            family.add_metric(labels, value)
        return family


class Histogram(_Family[list[float]]):
    """A series is a row: observations by bucket, the last one without a bound, then the sum of what was observed."""

    def __init__(
        self, name: str, documentation: str, labels: Labels = (), *, bounds: Sequence[float], limit: int = _SERIES
    ) -> None:
        super().__init__(name, documentation, labels, limit=limit)
        self._bounds = tuple(bounds)

    def observe(self, labels: Labels, value: float) -> None:
        try:
            row = self._series[labels]
        except KeyError:
            row = self._series.setdefault(self._admitted(labels), self._empty_row())
        row[bisect_left(self._bounds, value)] += 1
        row[-1] += value

    def state(self) -> dict[Labels, list[float]]:
        return self._series

    def absorb(self, series: Mapping[Labels, Sequence[float]]) -> None:
        for labels, row in series.items():
            held = self._series.get(labels) or self._empty_row()
            self._series[labels] = [mine + theirs for mine, theirs in zip(held, row, strict=True)]

    def exposed(self) -> Metric:
        family = HistogramMetricFamily(self.name, self.documentation, labels=self.labels)
        bounds = [*map(str, self._bounds), "+Inf"]
        for labels, row in self._series.items():
            family.add_metric(labels, list(zip(bounds, accumulate(row[:-1]), strict=True)), row[-1])
        return family

    def _empty_row(self) -> list[float]:
        return [0] * (len(self._bounds) + 2)


def render(
    snapshots: Iterable[bytes], accept: str = "", *, cache_entries: Mapping[str, int] | None = None
) -> tuple[bytes, str]:
    """The sum of the snapshots as a body and its content type: OpenMetrics if `accept` names it, else the text format.

    `cache_entries` is by endpoint, counted once for the scrape: the store is
    shared, so no process owns the figure. A pure function, safe in a thread;
    thousands of series cost tens of milliseconds.
    """
    merged = Metrics()
    for snapshot in snapshots:
        try:
            merged.absorb(snapshot)
        except ValueError as error:
            _log.warning("one process is missing from the metrics: %s", error)
    for endpoint, entries in (cache_entries or {}).items():
        merged.cache_entries.set((endpoint,), entries)
    # The header itself stays here: choose_encoder raises on versions that are not numbers.
    encoder, content_type = choose_encoder(_OPENMETRICS if _OPENMETRICS in accept.lower() else "text/plain")
    return encoder(merged), content_type


def without_gauges(snapshot: bytes) -> bytes:
    """What a process that ended leaves to the sums. ValueError if it cannot be read."""
    ended = _decode(snapshot)
    ended.gauges = {}
    return _encode(ended)


class _Snapshot(msgspec.Struct, array_like=True):
    counters: dict[str, dict[Labels, float]]
    gauges: dict[str, dict[Labels, float]]
    histograms: dict[str, dict[Labels, list[float]]]


_OPENMETRICS = "application/openmetrics-text"
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Snapshot).decode
