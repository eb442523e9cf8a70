"""A file of rules is read again on SIGHUP, and one with an error changes nothing."""

import signal
from pathlib import Path

from tests.support.gateway import eventually, mock_provider, question, running_gateway, settings

HOUSE = '[[rules]]\nid = "house-key"\nregex = "HK-[0-9]{6}"\nkeywords = ["hk-"]\n'
BROKEN = '\n[[rules]]\nid = "new-key"\nregex = "(NK-[0-9]"\n'


def test_a_file_of_rules_with_an_error_is_told_and_the_old_policy_stays(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(HOUSE)
    rule = {"detect": "secrets", "rules": str(file), "on": ["input"], "action": "block"}
    with mock_provider(tmp_path) as upstream:
        config = settings(tmp_path, upstream.url, guardrails=[{"name": "default", "rules": [rule]}])
        with running_gateway(tmp_path, config) as gateway:

            def status(text: str) -> int:
                asked = question(text, model="mock/any")
                return gateway.client.post("/v1/chat/completions", json=asked).status_code

            before = [status("HK-123456"), status("NK-1")]
            file.write_text(HOUSE + BROKEN)
            gateway.server.signal(signal.SIGHUP)
            eventually(lambda: "the old one stays" in gateway.log())
            after = [status("HK-123456"), status("NK-1")]
            said = gateway.log()
            file.write_text(HOUSE + BROKEN.replace("(", ""))
            gateway.server.signal(signal.SIGHUP)
            eventually(lambda: status("NK-1") == 400)

    assert before == after == [400, 200]
    assert f"guardrails.0.rules.0.rules: {file}:6: rule 'new-key': regex: missing ): (NK-[0-9]" in said
