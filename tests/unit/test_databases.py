"""A folder of compiled databases. That they find what they should is tested with patterns."""

import os
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path

import pytest

hyperscan = pytest.importorskip("hyperscan")

from guardrails import databases  # noqa: E402  # what it needs is not everywhere

WORD = {0: (b"keep", 0)}
OTHER = {0: (b"gate", 0)}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    databases.keep_in(tmp_path / "patterns", least=0.0)
    yield tmp_path / "patterns"
    databases.keep_in(None)


def ends(expressions: dict[int, tuple[bytes, int]], text: bytes) -> list[int]:
    """Where the database of these says that a match ends."""
    found: list[int] = []
    database = databases.database(expressions)
    assert database is not None
    database.scan(text, lambda _id, _start, end, _flags, _context: found.append(end))
    return found


def test_a_database_is_kept_for_its_owner_alone(folder: Path) -> None:
    assert ends(WORD, b"keep at the gate") == [4]

    (file,) = folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


def test_what_is_kept_is_loaded_and_not_compiled_again(folder: Path) -> None:
    ends(WORD, b"")
    (word,) = folder.iterdir()
    ends(OTHER, b"")
    (other,) = set(folder.iterdir()) - {word}
    other.replace(word)

    assert ends(WORD, b"keep at the gate") == [16]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:0],
        lambda content: content[:-1],
        lambda content: content[:100] + bytes([content[100] ^ 1]) + content[101:],
        lambda content: bytes([content[0] ^ 1]) + content[1:],
    ],
)
def test_a_damaged_one_is_compiled_again_and_replaced(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    ends(WORD, b"")
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))

    found = ends(WORD, b"keep at the gate")

    assert found == [4]
    assert file.read_bytes() == whole


def test_one_of_another_library_is_compiled_again(folder: Path) -> None:
    ends(WORD, b"")
    (file,) = folder.iterdir()
    content = b"no database"
    file.write_bytes(blake2b(content, digest_size=32).digest() + content)

    assert ends(WORD, b"keep") == [4]


def test_what_is_quick_to_compile_is_not_kept(tmp_path: Path) -> None:
    databases.keep_in(tmp_path / "patterns", least=60.0)
    try:
        assert ends(WORD, b"keep") == [4]
    finally:
        databases.keep_in(None)

    assert not (tmp_path / "patterns").exists()


def test_only_those_used_last_stay(folder: Path) -> None:
    for number in range(16):
        ends({0: (b"word%d" % number, 0)}, b"")
    oldest, *others = sorted(folder.iterdir())
    for at, file in enumerate([oldest, *others]):
        os.utime(file, (at, at))

    ends(WORD, b"")

    assert not oldest.exists()
    assert all(file.exists() for file in others)


def test_a_folder_that_cannot_be_made_costs_time_only(tmp_path: Path) -> None:
    (tmp_path / "patterns").write_text("in the way")
    databases.keep_in(tmp_path / "patterns", least=0.0)
    try:
        assert ends(WORD, b"keep") == [4]
    finally:
        databases.keep_in(None)


def test_what_cannot_be_compiled_is_none(folder: Path) -> None:
    assert databases.database({0: (b"(?=look)", 0)}) is None
    assert databases.database({}) is None
    assert not folder.exists()
