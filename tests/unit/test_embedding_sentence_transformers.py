"""What sentence-transformers' embedder says without the package: its revision, and how to get it."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from backends import registry
from backends.embedding.sentence_transformers import SentenceTransformersEmbedder
from models.errors import BackendError, ConfigError
from tests.support.encoders import tiny_files, write

INSTALLED = find_spec("sentence_transformers") is not None


def folder(place: Path, **files: bytes) -> Path:
    named = {name.replace("__", "/"): content for name, content in files.items()}
    return write(place, tiny_files() | {"model.safetensors": b"weights"} | named)


@pytest.mark.skipif(INSTALLED, reason="the extra is installed here")
async def test_without_the_package_the_error_says_how_to_get_it(tmp_path: Path) -> None:
    embedder = SentenceTransformersEmbedder(path=folder(tmp_path / "model"), cache=tmp_path)

    with pytest.raises(BackendError, match=r"pip install 'keepgate\[sentence-transformers\]'"):
        await embedder.load()
    await embedder.close()

    assert registry.not_installed("embedding", "sentence-transformers") == (
        "needs the package sentence_transformers: pip install 'keepgate[sentence-transformers]'"
    )


def test_revision_and_dimensions_are_read_from_the_folder(tmp_path: Path) -> None:
    embedder = SentenceTransformersEmbedder(path=folder(tmp_path / "my-model"), cache=tmp_path)

    assert embedder.dimensions == 4
    assert embedder.revision.startswith("my-model@")
    assert SentenceTransformersEmbedder(path=tmp_path / "my-model", cache=tmp_path).revision == embedder.revision


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer.json", "1_Pooling/config.json", "2_Dense/model.safetensors", "vocab.txt"]
)
def test_a_change_to_any_file_that_counts_is_another_revision(tmp_path: Path, name: str) -> None:
    before = SentenceTransformersEmbedder(path=folder(tmp_path / "model"), cache=tmp_path).revision

    write(tmp_path / "model", {name: b'{"pooling_mode": "cls", "embedding_dimension": 4}'})

    assert SentenceTransformersEmbedder(path=tmp_path / "model", cache=tmp_path).revision != before


@pytest.mark.parametrize("name", ["README.md", "onnx/other.onnx", "pytorch_model.bin", ".git/config.json", "train.py"])
def test_a_change_to_what_is_not_used_changes_nothing(tmp_path: Path, name: str) -> None:
    before = SentenceTransformersEmbedder(path=folder(tmp_path / "model"), cache=tmp_path).revision

    write(tmp_path / "model", {name: b"something else"})

    assert SentenceTransformersEmbedder(path=tmp_path / "model", cache=tmp_path).revision == before


def test_a_layer_after_the_pooling_says_the_dimensions(tmp_path: Path) -> None:
    more = {"2_Dense/config.json": b'{"out_features": 9}', "model.safetensors": b"weights"}
    place = write(tmp_path / "model", tiny_files(modules=("Transformer", "Pooling", "Dense")) | more)

    assert SentenceTransformersEmbedder(path=place, cache=tmp_path).dimensions == 9


def test_a_model_that_does_not_say_its_dimensions_can_be_told(tmp_path: Path) -> None:
    place = folder(tmp_path / "model", **{"config.json": b"{}", "1_Pooling/config.json": b"{}"})

    with pytest.raises(ConfigError, match=r"cache\.embedder\.dimensions: the files of model do not say it"):
        SentenceTransformersEmbedder(path=place, cache=tmp_path)

    assert SentenceTransformersEmbedder(path=place, cache=tmp_path, dimensions=7).dimensions == 7


def test_a_folder_that_is_not_there_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cache\.embedder\.path: there is no folder"):
        SentenceTransformersEmbedder(path=tmp_path / "none", cache=tmp_path)


def test_weights_are_taken_in_one_form_in_each_folder(tmp_path: Path) -> None:
    before = SentenceTransformersEmbedder(path=folder(tmp_path / "model"), cache=tmp_path).revision

    write(tmp_path / "model", {"2_Dense/pytorch_model.bin": b"weights of a layer that has no other form"})

    assert SentenceTransformersEmbedder(path=tmp_path / "model", cache=tmp_path).revision != before
