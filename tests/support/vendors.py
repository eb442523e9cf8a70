"""All dialects of providers behind one gateway: an upstream for each.

    vendors.gateway, vendors.calls            # and fakes by name: vendors.fakes["anthropic"]
    MODELS["anthropic"]                       # what a client asks for: `anthropic/claude-haiku-4-5`
    f"keyless-{MODELS['anthropic']}"          # the same of an upstream whose key the vendor refuses

`responses` and `openai` are the same fake, which speaks both.
"""

import itertools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.fake_anthropic import Anthropic
from tests.support.fake_gemini import Gemini
from tests.support.fake_openai import OpenAI
from tests.support.fake_provider import KEY, Fake, running
from tests.support.gateway import AS_SHIPPED, Gateway, Json, running_gateway, settings

MODELS = {
    "openai": "openai/gpt-4o",
    "responses": "responses-api/gpt-5.2",
    "anthropic": "anthropic/claude-haiku-4-5",
    "gemini": "gemini/gemini-2.5-flash",
}
_ENDPOINTS: list[Json] = [
    {"name": "default", "cache": {"mode": "exact", "keep": ["stop", "length", "tool_calls"]}},
    {"name": "semantic", "cache": {"mode": "semantic"}},
]
_numbers = itertools.count()


@dataclass(frozen=True)
class Vendors:
    gateway: Gateway
    fakes: Mapping[str, Fake]

    @property
    def calls(self) -> int:
        """How many came to any of them since `reset`."""
        return sum(len(fake.calls) for fake in set(self.fakes.values()))

    def reset(self) -> None:
        for fake in set(self.fakes.values()):
            fake.reset()

    def fail(self, fault: str, *, times: int | None = None, **more: Any) -> None:
        """What calls to any of them meet, without end unless `times` says how many."""
        for fake in set(self.fakes.values()):
            fake.fail(fault, times=times, **more)


@contextmanager
def running_vendors(directory: Path) -> Iterator[Vendors]:
    with ExitStack() as stack:
        openai = stack.enter_context(running(OpenAI()))
        fakes = {
            "openai": openai,
            "responses": openai,
            "anthropic": stack.enter_context(running(Anthropic())),
            "gemini": stack.enter_context(running(Gemini())),
        }
        upstreams: list[Json] = [
            {
                "name": prefix + MODELS[name].partition("/")[0],
                "provider": "openai" if name == "responses" else name,
                "base_url": fake.base_url,
                "api_key": key,
                "dialects": [name],
                # A fault that is told once is met once: a breaker must not remember it for the next test.
                "breaker": {"failures": 1000},
            }
            for name, fake in fakes.items()
            for prefix, key in (("", KEY), ("keyless-", "revoked"))
        ]
        config = settings(directory, "", upstreams=upstreams, endpoints=_ENDPOINTS, guardrails=AS_SHIPPED)
        yield Vendors(stack.enter_context(running_gateway(directory, config)), fakes)


def apart() -> dict[str, str]:
    """Headers under which nobody else has asked anything: a cache of one's own."""
    return {"x-keepgate-namespace": f"test-{next(_numbers)}"}
