"""What `keepgate check-config` says of an embedder, and what the wiring makes of one."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from backends.embedding import minilm
from backends.embedding.hub import is_name
from backends.embedding.onnx import OnnxEmbedder
from backends.embedding.openai import OpenAIEmbedder
from backends.embedding.remembering import RememberingEmbedder
from models.errors import ConfigError
from service.settings import load
from service.wiring import make_embedder
from tests.support.encoders import tiny_files, write

ST = "sentence-transformers"
LACKS_ST = f"cache.embedder.kind: {ST} needs the package sentence_transformers: pip install 'keepgate[{ST}]'"


def problems(folder: Path, embedder: str) -> list[str]:
    """Without what the machine lacks, which is another test's."""
    file = folder / "keepgate.yaml"
    file.write_text(f"cache: {{embedder: {{{embedder}}}}}".replace("HERE", str(folder)))
    try:
        load(file, {}, on_this_machine=True)
    except ConfigError as error:
        said = [problem.removeprefix("cache.embedder.").replace(str(folder), "HERE") for problem in error.problems]
        return [problem for problem in said if not problem.startswith(f"kind: {ST} needs")]
    return []


@pytest.mark.parametrize(
    ("embedder", "problem"),
    [
        ("kind: sentence-transformer", f"did you mean '{ST}'?"),
        ("kind: bert", f"kind: must be one of: onnx, openai, {ST}, static"),
        ("path: HERE/none", "path: there is no folder HERE/none"),
        ("path: HERE", "path: HERE lacks model.onnx and tokenizer.json"),
        ("path: HERE, file: onnx/model_int8.onnx", "path: HERE lacks onnx/model_int8.onnx and tokenizer.json"),
        (f"kind: {ST}, path: HERE", "path: HERE lacks modules.json or config.json"),
        ("path: HERE/model, model: BAAI/bge-small-en-v1.5", "model: cannot be combined with path"),
        (f"kind: {ST}, path: HERE/model, model: BAAI/bge-small-en-v1.5", "model: cannot be combined with path"),
        ("path: HERE/model, revision: main", "revision: cannot be combined with path: what is in the folder"),
        ("model: ./model", "model: is the path of a folder: write it as path"),
        (f"kind: {ST}, model: /models/mine", "model: is the path of a folder: write it as path"),
        ("model: bge-small", "model: no package carries 'bge-small'; known: all-MiniLM-L6-v2; or give the path of a"),
        ("model: a/b/c", "model: no package carries 'a/b/c'"),
        ("model: acme/../etc", "model: no package carries"),
        (f"kind: {ST}, model: a/b/c", "model: must be a name on the hub such as BAAI/bge-small-en-v1.5"),
        ("revision: main", "revision: cannot be combined with all-MiniLM-L6-v2, which comes in a package"),
        ("file: onnx/model.onnx", "file: cannot be combined with all-MiniLM-L6-v2"),
        ("model: acme/tiny, revision: a b", "revision: must be a commit, a tag or a branch"),
        ("model: acme/tiny, revision: ../x", "revision: must be a commit, a tag or a branch"),
        ("model: acme/tiny, file: ../model.onnx", "file: must be the graph's path in the model's folder"),
        ("model: acme/tiny, file: model.bin", "file: must be the graph's path in the model's folder"),
        ("dimensions: 384", f"dimensions: has no effect with kind onnx: it is for openai and {ST}"),
        ("base_url: 'http://127.0.0.1/v1'", "base_url: has no effect with kind onnx: it is for openai"),
        ("kind: static, path: HERE/model", f"path: has no effect with kind static: it is for onnx and {ST}"),
        ("kind: static, revision: x", "revision: has no effect with kind static"),
        (f"kind: {ST}, file: model.onnx", f"file: has no effect with kind {ST}: it is for onnx"),
        ("shorten: true", "shorten: has no effect with kind onnx: it is for openai"),
        ("kind: openai", "base_url: is required with kind openai"),
        ("kind: openai, base_url: 'http://127.0.0.1/v1'", "dimensions: is required with kind openai"),
        ("remember: -1", "remember: must be at least 0"),
        ("dimensions: 0", "dimensions: must be at least 1"),
        ("kind: openai, revisoin: x", "revisoin: "),
    ],
)
def test_a_wrong_setting_is_named_with_what_to_do(tmp_path: Path, embedder: str, problem: str) -> None:
    write(tmp_path / "model", tiny_files())

    assert any(problem in found for found in problems(tmp_path, embedder))


@pytest.mark.parametrize(
    "embedder",
    [
        "kind: onnx, model: all-MiniLM-L6-v2",
        "path: HERE/model",
        "path: HERE/model, file: onnx/model.onnx",
        "model: BAAI/bge-small-en-v1.5",
        "model: BAAI/bge-small-en-v1.5, revision: 5c38ec7c405ec4b44b94cc5a9bb96e735b38267a, file: onnx/model.onnx",
        f"kind: {ST}",
        f"kind: {ST}, model: all-mpnet-base-v2, dimensions: 256, revision: refs/pr/3",
        f"kind: {ST}, path: HERE/model",
        "kind: openai, base_url: 'http://127.0.0.1/v1', dimensions: 8, revision: 'after the move', shorten: true",
        "kind: static, remember: 0",
    ],
)
def test_what_can_work_has_no_problem(tmp_path: Path, embedder: str) -> None:
    write(tmp_path / "model", tiny_files())

    assert problems(tmp_path, embedder) == []


@pytest.mark.skipif(find_spec("sentence_transformers") is not None, reason="the extra is installed here")
def test_a_package_that_is_not_installed_is_a_problem_with_its_command(tmp_path: Path) -> None:
    file = tmp_path / "keepgate.yaml"
    file.write_text(f"cache: {{embedder: {{kind: {ST}}}}}")

    with pytest.raises(ConfigError) as refused:
        load(file, {})

    assert refused.value.problems == (LACKS_ST,)


@pytest.mark.parametrize(
    ("embedder", "store", "warned"),
    [
        ("model: acme/tiny", "qdrant", True),
        ("model: acme/tiny, revision: main", "redis", True),
        ("model: acme/tiny, revision: 5c38ec7c405ec4b44b94cc5a9bb96e735b38267a", "qdrant", False),
        ("model: acme/tiny", "faiss", False),
        ("model: all-MiniLM-L6-v2", "qdrant", False),
        ("path: HERE", "qdrant", False),
    ],
)
def test_a_name_that_may_move_is_a_warning_where_vectors_are_shared(
    tmp_path: Path, embedder: str, store: str, warned: bool
) -> None:
    file = tmp_path / "keepgate.yaml"
    embedder = embedder.replace("HERE", str(tmp_path))
    file.write_text(f"cache: {{vector: {{store: {store}}}, embedder: {{{embedder}}}}}")

    said = [warning for warning in load(file, {}).warnings if warning.startswith("cache.embedder.")]

    assert bool(said) == warned
    assert all("is no commit" in warning for warning in said)


@pytest.mark.parametrize("name", ["acme/a", "a.b/c.d", "acme/..", "acme/a..b", "a/b/c", "../x", "acme/a b", "a", "_/x"])
def test_settings_and_the_hub_agree_on_what_a_name_is(tmp_path: Path, name: str) -> None:
    assert (problems(tmp_path, f"model: {name}") == []) == is_name(name)


def test_what_is_made_remembers_unless_it_is_told_not_to(tmp_path: Path) -> None:
    file = tmp_path / "keepgate.yaml"
    file.write_text("cache: {embedder: {remember: 0}}")

    usual, forgetful = make_embedder(load(None, {})), make_embedder(load(file, {}))

    assert isinstance(usual, RememberingEmbedder)
    assert isinstance(forgetful, OnnxEmbedder)
    assert usual.revision == forgetful.revision == minilm.REVISION == "all-MiniLM-L6-v2@53aa51172d14/int8-pc/1"


def test_what_is_set_reaches_the_embedder(tmp_path: Path) -> None:
    model = write(tmp_path / "model", tiny_files())
    file = tmp_path / "keepgate.yaml"

    def made(embedder: str) -> str:
        file.write_text(f"cache: {{embedder: {{remember: 0, {embedder}}}}}")
        return make_embedder(load(file, {})).revision

    api = "kind: openai, base_url: 'http://127.0.0.1:9/v1', model: small, dimensions: 8"
    expected = OpenAIEmbedder(base_url="http://127.0.0.1:9/v1", model="small", dimensions=8, revision="two").revision
    assert made(f"{api}, revision: two") == expected != made(api)
    assert made(f"path: {model}") == OnnxEmbedder(path=model).revision
