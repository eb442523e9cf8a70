"""Opening LMDB environments: what is looked at, what is refused, what is left behind."""

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.environment import SharedEnvironment, open_environment
from models.errors import BackendError


def opened(path: Path, *, aside: list[Path] | None = None, sync: bool = False) -> SharedEnvironment:
    return open_environment(path, map_size=16 << 20, sync=sync, aside=None if aside is None else aside.append)


def filled(path: Path) -> SharedEnvironment:
    environment = opened(path)
    with environment.lmdb.begin(write=True) as transaction:
        for number in range(500):
            transaction.put(str(number).encode(), bytes(1_000))
    return environment


def entries(environment: SharedEnvironment) -> int:
    return environment.lmdb.stat()["entries"]


@pytest.mark.parametrize("sync", [False, True])
def test_what_was_committed_is_there_at_the_next_open(tmp_path: Path, sync: bool) -> None:
    moved: list[Path] = []
    filled(tmp_path / "store").close()

    environment = opened(tmp_path / "store", aside=moved, sync=sync)

    assert entries(environment) == 500
    assert moved == []
    environment.close()


def test_missing_folders_are_made_for_the_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "store"

    opened(path).close()

    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o600}


def test_a_second_open_in_one_process_is_refused_and_leaves_the_first_alone(tmp_path: Path) -> None:
    first = filled(tmp_path / "store")

    with pytest.raises(BackendError, match="already open in this process"):
        opened(tmp_path / "store")

    assert entries(first) == 500
    first.close()
    opened(tmp_path / "store").close()


def test_closing_twice_is_fine(tmp_path: Path) -> None:
    environment = filled(tmp_path / "store")

    environment.close()
    environment.close()

    again = opened(tmp_path / "store")
    assert entries(again) == 500
    again.close()


def test_a_damaged_store_is_kept_beside_the_new_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    moved: list[Path] = []
    filled(tmp_path / "store").close()
    length = (tmp_path / "store" / "data.mdb").stat().st_size
    os.truncate(tmp_path / "store" / "data.mdb", length // 2)

    environment = opened(tmp_path / "store", aside=moved)

    assert entries(environment) == 0
    assert [away.name.startswith("store.corrupt-") for away in moved] == [True]
    assert (moved[0] / "data.mdb").stat().st_size == length // 2
    assert f"moved to {moved[0]}" in caplog.text
    environment.close()


def test_an_open_store_is_not_looked_at_again_by_others(tmp_path: Path) -> None:
    """Its pages change under the eyes of whoever reads them without LMDB's locks."""
    moved: list[Path] = []
    first = filled(tmp_path / "store")
    (tmp_path / "store" / "doubt").touch()

    with pytest.raises(BackendError, match="already open"):
        opened(tmp_path / "store", aside=moved)

    assert moved == []
    assert (tmp_path / "store" / "doubt").exists()
    first.close()


def scribble(path: Path) -> None:
    """Damages the middle of the file and puts its time back, so that it looks untouched."""
    data = path / "data.mdb"
    before = data.stat()
    with data.open("r+b") as file:
        file.seek(8 * 4096)
        file.write(b"\xaa" * 40 * 4096)
    os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_doubted_store_is_walked_at_the_next_open(tmp_path: Path) -> None:
    moved: list[Path] = []
    environment = filled(tmp_path / "store")
    environment.doubt()
    environment.close()
    scribble(tmp_path / "store")

    opened(tmp_path / "store", aside=moved).close()

    assert len(moved) == 1
    assert not (tmp_path / "store" / "doubt").exists()


def test_a_store_closed_cleanly_and_not_touched_since_is_opened_without_a_walk(tmp_path: Path) -> None:
    moved: list[Path] = []
    filled(tmp_path / "store").close()
    scribble(tmp_path / "store")

    opened(tmp_path / "store", aside=moved).close()

    assert moved == []  # the price of a quick start: a walk would have found it


def test_a_store_that_was_touched_since_it_was_closed_is_walked(tmp_path: Path) -> None:
    moved: list[Path] = []
    filled(tmp_path / "store").close()
    scribble(tmp_path / "store")
    os.utime(tmp_path / "store" / "data.mdb")

    opened(tmp_path / "store", aside=moved).close()

    assert len(moved) == 1


def test_a_path_below_a_file_is_refused_with_what_to_change(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(BackendError, match=r"storage\.path must be a directory"):
        opened(tmp_path / "file" / "store")


@contextlib.contextmanager
def without_rights() -> Iterator[None]:
    """Permissions do not bind root, so root becomes nobody for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("name", [".", "in-use", "data.mdb"])
def test_a_store_of_somebody_else_is_refused_and_not_moved(name: str) -> None:
    moved: list[Path] = []
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path: nobody may not enter that
        Path(folder).chmod(0o755)
        path = Path(folder) / "store"
        filled(path).close()
        path.chmod(0o755)
        (path / "in-use").chmod(0o666)
        (path / name).chmod(0)

        with without_rights(), pytest.raises(BackendError, match="change its owner or mode"):
            opened(path, aside=moved)
        (path / name).chmod(0o700)

    assert moved == []
