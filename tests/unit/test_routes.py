"""Which path is which dialect and operation."""

import pytest

from models.request import Operation
from service.api.routes import Inference, place


@pytest.mark.parametrize(
    ("path", "model", "operation"),
    [
        ("/openai/deployments/gpt-4o/chat/completions", "gpt-4o", "chat"),
        ("/openai/deployments/gpt-4o/completions", "gpt-4o", "completion"),
        ("/openai/deployments/gpt-4o/embeddings", "gpt-4o", "embedding"),
        ("/openai/deployments/local/qwen/chat/completions", "local/qwen", "chat"),
    ],
)
def test_a_deployment_in_the_path_is_the_model(path: str, model: str, operation: Operation) -> None:
    found = place(path, b"api-version=2024-10-21", [])

    assert isinstance(found, Inference)
    assert (found.dialect.name, found.asked.model, found.asked.operation) == ("openai", model, operation)
