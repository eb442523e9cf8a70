"""What may be answered from a similar request, and what may be kept."""

from typing import Any

import msgspec
import pytest

from backends.vector.base import Neighbor
from models.completion import Completion, Usage
from models.request import Operation, Request
from service.caching.eligibility import keepable, names_a_container, not_semantic
from service.caching.threshold import near_enough, nearest_rejected


def asking(operation: Operation = "chat", **fields: Any) -> Request:
    return Request(operation, "m", fields, b"")


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (asking(), None),
        (asking(temperature=0.3), None),
        (asking(temperature=0), None),
        (asking(temperature=None), None),
        (asking(n=1), None),
        (asking(temperature=0.31), "temperature"),
        (asking(n=2), "several-choices"),
        (asking(logprobs=True), "logprobs"),
        (asking(logprobs=False), None),
        (asking("completion"), "operation"),
        (asking("embedding"), "operation"),
    ],
)
def test_the_semantic_tier_leaves_some_requests_alone(request_: Request, reason: str | None) -> None:
    assert not_semantic(request_, max_temperature=0.3) == reason


@pytest.mark.parametrize(
    ("finished", "kept"),
    [
        (("stop",), True),
        ((), True),  # embeddings
        (("length",), False),
        (("tool_calls",), False),
        (("content_filter",), False),
        (("None",), False),
        (("stop", "length"), False),
    ],
)
def test_only_answers_that_finished_are_kept(finished: tuple[str, ...], kept: bool) -> None:
    completion = Completion(b"{}", "m", Usage(), finished)

    assert keepable(completion, frozenset({"stop"})) is kept


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ({"choices": [{"message": {"content": "Hi"}}]}, False),
        ({"choices": [{"message": {"content": '{"container": "web", "container_id": 1}'}}]}, False),
        ({"choices": [], "provider_fields": {"container": None}}, False),
        ({"choices": [], "provider_fields": {"container": {"id": "c"}}}, True),
        ({"choices": [{"provider_fields": {"container": {"id": "c"}}}]}, True),
        ({"choices": [{"message": {"provider_content": [{"block": {"type": "x", "container_id": "c"}}]}}]}, True),
        ({"choices": [{"message": {"annotations": [{"container_id": "c", "file_id": "f"}]}}]}, True),
    ],
)
def test_the_id_of_a_container_is_found_wherever_it_is(answer: dict[str, Any], named: object) -> None:
    completion = Completion(msgspec.json.encode(answer), "m", Usage(), ("stop",))

    assert names_a_container(completion) is named


def test_a_hit_is_at_or_above_the_threshold() -> None:
    neighbors = [Neighbor("a", 0.95, b""), Neighbor("b", 0.92, b""), Neighbor("c", 0.91, b"")]

    near = near_enough(neighbors, threshold=0.92)

    assert [n.entry_id for n in near] == ["a", "b"]
    assert nearest_rejected(neighbors, near) == 0.91
    assert nearest_rejected(neighbors[:2], near) is None
    assert nearest_rejected(neighbors, near[1:]) == 0.95
