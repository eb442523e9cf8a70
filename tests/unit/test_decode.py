"""A body that cannot be used is refused with what to change."""

import pytest

from models.errors import RequestError
from service.api.dialect import Asked
from service.api.openai_chat import decode


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "the body is empty"),
        (b'{"model": }', "not valid JSON in UTF-8 (byte 10)"),
        (b'{"model": "\xff"}', "not valid JSON in UTF-8"),
        (b'{"n": NaN}', "not valid JSON in UTF-8 (byte 6)"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "must be a JSON object"),
        (b'{"messages": []}', "model must be a name"),
        (b'{"model": "m"}', "messages must be a list"),
        (b'{"model": "m", "messages": [{"role": "user"}, {"content": "x"}]}', "messages[1] must be an object"),
        (b'{"model": "m", "messages": [{"role": "user"}], "temperature": true}', "temperature must be a number"),
    ],
)
def test_a_body_is_refused_with_what_to_change(raw: bytes, message: str) -> None:
    with pytest.raises(RequestError) as refused:
        decode(raw, Asked("chat"))

    assert message in refused.value.message
    assert refused.value.code == "invalid_request"
