"""A configuration that is refused changes nothing of what decides."""

import asyncio
import logging
from pathlib import Path

from service.settings import load
from service.wiring import Runtime

CONFIG = """\
storage: {path: %s}
cache: {exact: {store: memory}}
upstreams: [{name: demo, provider: demo}]
"""
BEFORE = "endpoints: [{name: default, cache: {mode: semantic}, guardrails: []}]\n"
REFUSED = """\
endpoints:
  - name: default
    cache: {mode: semantic, second_opinion: {kind: judge, model: demo/m}}
    guardrails: [broken]
guardrails:
  - {name: broken, rules: [{detect: secrets, rules: HERE/rules.toml, on: input, action: block}]}
"""


# Only whoever builds it finds that this matches the empty text.
UNUSABLE = """\
[[rules]]
id = "acme-key"
regex = "(?:acme)*"
"""


class Refusals(logging.Handler):
    """Sets `heard` when a configuration is refused."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.heard = asyncio.Event()
        self.said = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.said = record.getMessage()
        self.heard.set()


async def test_a_refused_configuration_asks_nobody_for_an_opinion(tmp_path: Path) -> None:
    file = tmp_path / "keepgate.yaml"
    file.write_text(CONFIG % tmp_path + BEFORE)
    runtime = Runtime(load(file, {}), config=file, environ={}, admin_token="t")
    await runtime.start()
    refusals = Refusals()
    logging.getLogger("keepgate.wiring").addHandler(refusals)
    try:
        assert runtime.semantic is not None
        before = dict(runtime.semantic.opinions), runtime.decision("default")
        (tmp_path / "rules.toml").write_text(UNUSABLE)
        file.write_text(CONFIG % tmp_path + REFUSED.replace("HERE", str(tmp_path)))

        runtime.reload()
        await asyncio.wait_for(refusals.heard.wait(), 30.0)

        assert "matches the empty text" in refusals.said
        assert (dict(runtime.semantic.opinions), runtime.decision("default")) == before == ({}, before[1])
    finally:
        logging.getLogger("keepgate.wiring").removeHandler(refusals)
        await runtime.close()
