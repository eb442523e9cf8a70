import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from service.telemetry.metrics import Counter, Gauge, Histogram, Metrics, render, without_gauges

# The names dashboards may rely on, with their labels where docs/metrics.md fixes them.
PUBLIC = {
    "keepgate_requests_total": ("counter", {"endpoint", "model", "upstream", "status", "cache"}),
    "keepgate_request_seconds": ("histogram", {"endpoint", "cache"}),
    "keepgate_overhead_seconds": ("histogram", {"endpoint", "cache"}),
    "keepgate_time_to_first_token_seconds": ("histogram", {"endpoint", "cache"}),
    "keepgate_cache_lookups_total": ("counter", {"endpoint", "tier", "result"}),
    "keepgate_cache_audits_total": ("counter", {"endpoint", "outcome"}),
    "keepgate_cache_refreshes_total": ("counter", {"endpoint", "outcome"}),
    "keepgate_cache_similarity": ("histogram", {"endpoint", "result"}),
    "keepgate_cache_lookup_seconds": ("histogram", {"tier"}),
    "keepgate_cache_entries": ("gauge", {"endpoint"}),
    "keepgate_tokens_total": ("counter", {"endpoint", "model", "direction"}),
    "keepgate_tokens_saved_total": ("counter", {"endpoint", "model", "tier"}),
    "keepgate_cost_usd_total": ("counter", {"endpoint", "model"}),
    "keepgate_cost_saved_usd_total": ("counter", {"endpoint", "model"}),
    "keepgate_guardrail_actions_total": ("counter", {"rule", "detector", "action", "phase"}),
    "keepgate_guardrail_seconds": ("histogram", {"detector"}),
    "keepgate_upstream_attempts_total": ("counter", {"upstream", "outcome"}),
    "keepgate_upstream_seconds": ("histogram", {"upstream"}),
    "keepgate_upstream_open": ("gauge", {"upstream"}),
    "keepgate_upstream_waiting": ("gauge", {"upstream"}),
    "keepgate_fields_dropped_total": ("counter", {"endpoint", "dialect"}),
    "keepgate_coalesced_total": ("counter", set()),
    "keepgate_inflight": ("gauge", set()),
    "keepgate_degraded": ("gauge", {"component"}),
    "keepgate_reembedding_remaining": ("gauge", set()),
    "keepgate_records_dropped_total": ("counter", set()),
}


def test_a_new_process_already_names_every_public_metric_and_its_type() -> None:
    body, content_type = render([Metrics().snapshot()])

    types = dict(line.split()[2:] for line in body.decode().splitlines() if line.startswith("# TYPE"))
    assert types == {name: kind for name, (kind, _) in PUBLIC.items()}
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"


def test_every_public_metric_has_its_labels() -> None:
    metrics = Metrics()
    for family in vars(metrics).values():
        if isinstance(family, Counter | Gauge):
            family.add(family.labels, 1)
        elif isinstance(family, Histogram):
            family.observe(family.labels, 1.0)

    families = parsed(render([metrics.snapshot()])[0])

    labels = {sample_name(family): set(family.samples[0].labels) - {"le"} for family in families}
    assert labels == {name: labels for name, (_, labels) in PUBLIC.items()}


def test_counts_without_labels_start_at_zero() -> None:
    body, _ = render([Metrics().snapshot()])

    assert b"\nkeepgate_coalesced_total 0.0\n" in body
    assert b"\nkeepgate_inflight 0.0\n" in body


def test_a_histogram_counts_an_observation_in_its_bucket_and_all_above() -> None:
    metrics = Metrics()
    metrics.cache_lookup_seconds.observe(("exact",), 0.25)  # a bound belongs to its bucket
    metrics.cache_lookup_seconds.observe(("exact",), 0.3)
    metrics.cache_lookup_seconds.observe(("exact",), 99.0)

    body = render([metrics.snapshot()])[0].decode()

    assert 'keepgate_cache_lookup_seconds_bucket{le="0.1",tier="exact"} 0.0' in body
    assert 'keepgate_cache_lookup_seconds_bucket{le="0.25",tier="exact"} 1.0' in body
    assert 'keepgate_cache_lookup_seconds_bucket{le="0.5",tier="exact"} 2.0' in body
    assert 'keepgate_cache_lookup_seconds_bucket{le="+Inf",tier="exact"} 3.0' in body
    assert 'keepgate_cache_lookup_seconds_count{tier="exact"} 3.0' in body
    assert 'keepgate_cache_lookup_seconds_sum{tier="exact"} 99.55' in body


def test_the_counts_of_several_processes_are_added_up() -> None:
    one, two = Metrics(), Metrics()
    for metrics, requests in ((one, 2), (two, 3)):
        metrics.requests.add(("default", "gpt-4o", "", "200", "exact"), requests)
        metrics.request_seconds.observe(("default", "exact"), 0.5)
        metrics.inflight.add((), requests)
    two.requests.add(("default", "gpt-4o", "openai", "502", "miss"))

    body = render([one.snapshot(), two.snapshot()])[0].decode()

    assert (
        'keepgate_requests_total{cache="exact",endpoint="default",model="gpt-4o",status="200",upstream=""} 5.0' in body
    )
    assert 'cache="miss",endpoint="default",model="gpt-4o",status="502",upstream="openai"} 1.0' in body
    assert 'keepgate_request_seconds_count{cache="exact",endpoint="default"} 2.0' in body
    assert 'keepgate_request_seconds_sum{cache="exact",endpoint="default"} 1.0' in body
    assert "keepgate_inflight 5.0" in body


def test_a_component_is_degraded_when_it_is_in_any_process() -> None:
    one, two = Metrics(), Metrics()
    one.degraded.set(("embedder",), 1)
    two.degraded.set(("embedder",), 0)

    body, _ = render([one.snapshot(), two.snapshot()])

    assert b'keepgate_degraded{component="embedder"} 1.0' in body


def test_cache_entries_are_counted_once_however_many_processes_there_are() -> None:
    body, _ = render([Metrics().snapshot(), Metrics().snapshot()], cache_entries={"default": 12})

    assert b'keepgate_cache_entries{endpoint="default"} 12.0' in body


def test_a_process_that_ended_leaves_its_counts_and_not_its_gauges() -> None:
    metrics = Metrics()
    metrics.coalesced.add((), 7)
    metrics.inflight.add((), 3)
    metrics.degraded.set(("embedder",), 1)

    body, _ = render([without_gauges(metrics.snapshot())])

    assert b"keepgate_coalesced_total 7.0" in body
    assert b"keepgate_inflight 0.0" in body
    assert b'component="embedder"' not in body


def test_an_unreadable_snapshot_costs_its_own_counts_only(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    metrics.coalesced.add((), 7)

    body, _ = render([b"\x00 no snapshot", metrics.snapshot()])

    assert b"keepgate_coalesced_total 7.0" in body
    assert "one process is missing from the metrics" in caplog.text


def test_a_followed_total_is_read_when_the_counter_is() -> None:
    metrics = Metrics()
    dropped = 0
    metrics.records_dropped.follow(lambda: dropped)
    metrics.records_dropped.add((), 1)

    dropped = 41

    assert b"keepgate_records_dropped_total 42.0" in render([metrics.snapshot()])[0]


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3",
        "application/openmetrics-text; version=one",
        "Application/OpenMetrics-Text",
    ],
)
def test_openmetrics_is_for_who_asks(accept: str) -> None:
    metrics = Metrics()
    metrics.requests.add(("default", "gpt-4o", "", "200", "exact"))
    metrics.cache_similarity.observe(("default", "hit"), 0.97)

    body, content_type = render([metrics.snapshot()], accept)

    assert content_type == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert body.endswith(b"# EOF\n")
    families = parse_openmetrics(body.decode())  # type: ignore[no-untyped-call]  # it has no annotations
    assert len(list(families)) == len(PUBLIC)


def test_past_the_limit_models_are_other_and_errors_are_still_told_apart() -> None:
    counter = Counter("keepgate_test_total", "Test.", ("model", "status"), limit=2)
    for model in ("a", "b", "c", "d"):
        counter.add((model, "200"))
    counter.add(("e", "502"))
    counter.add(("a", "200"))

    assert counter.state() == {("a", "200"): 2, ("b", "200"): 1, ("other", "200"): 2, ("other", "502"): 1}


def test_nothing_grows_past_twice_the_limit() -> None:
    counter = Counter("keepgate_test_total", "Test.", ("status",), limit=2)
    for status in range(100):
        counter.add((str(status),))

    assert counter.state() == {("0",): 1, ("1",): 1, ("2",): 1, ("3",): 1, ("other",): 96}


def test_histograms_have_the_same_limit() -> None:
    histogram = Histogram("keepgate_test", "Test.", ("model",), bounds=(1.0,), limit=2)
    for model in ("a", "b", "c", "d"):
        histogram.observe((model,), 0.5)

    assert histogram.state() == {("a",): [1, 0, 0.5], ("b",): [1, 0, 0.5], ("other",): [2, 0, 1.0]}


@pytest.mark.parametrize("model", ["\ud800", "line\nbreak", "m" * 10_000])
def test_a_model_name_that_would_spoil_the_exposition_is_other(model: str) -> None:
    metrics = Metrics()
    metrics.tokens.add(("default", model, "prompt"), 5)

    body, _ = render([metrics.snapshot()])

    assert b'keepgate_tokens_total{direction="prompt",endpoint="default",model="other"} 5.0' in body


def test_a_model_name_is_escaped_and_read_back_as_it_was() -> None:
    metrics = Metrics()
    metrics.tokens.add(("default", 'a "quoted\\ näme', "prompt"), 5)

    tokens = next(family for family in parsed(render([metrics.snapshot()])[0]) if family.name == "keepgate_tokens")

    assert tokens.samples[0].labels["model"] == 'a "quoted\\ näme'


def test_a_count_with_missing_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="keepgate_requests_total has labels"):
        Metrics().requests.add(("default",))


def parsed(body: bytes) -> list[Metric]:
    return list(text_string_to_metric_families(body.decode()))


def sample_name(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name
