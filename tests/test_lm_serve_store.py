"""The store of receipts: bounds, versions, damage, several users at once, and the end of a process at any moment."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ree.errors import FormatError, InputError, LimitError
from ree.limits import GENERATION_RECEIPT_BYTES_MAX
from ree.lm.serve import store as store_module
from ree.lm.serve.store import APPLICATION_ID, Store

ROOT = Path(__file__).resolve().parent.parent


def test_what_is_kept_can_be_had_again(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "s.sqlite"
    store = Store(path)
    assert store.get("a") is None
    store.put("a", b"one")
    store.put("a", b"another")  # the first stays
    store.put("b", b"\x00" * 5000)
    assert (store.get("a"), store.get("b"), store.count()) == (b"one", b"\x00" * 5000, 2)
    store.close()
    again = Store(path)
    assert (again.get("a"), again.count()) == (b"one", 2)
    again.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", kept=10)
    for n in range(35):
        store.put(str(n), b"x")
    assert store.count() == 10 and store.get("24") is None and store.get("25") == b"x"
    store.close()
    smaller = Store(tmp_path / "s", kept=3)
    assert smaller.count() == 3 and smaller.get("34") == b"x"
    smaller.close()


def test_none_is_kept_for_longer_than_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_700_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    store = Store(tmp_path / "s", age_s=100)
    store.put("a", b"x")
    now += 60
    store.put("b", b"x")
    assert store.get("a") == b"x"
    now += 60
    assert store.get("a") is None and store.get("b") == b"x" and store.count() == 2
    store.put("c", b"x")
    assert store.count() == 2
    store.close()


def test_the_file_does_not_grow_for_ever(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", kept=20)
    sizes = []
    for n in range(400):
        store.put(str(n), random.Random(n).randbytes(3000))
        sizes.append(sum(file.stat().st_size for file in tmp_path.iterdir()))
    store.close()
    assert max(sizes[200:]) <= max(sizes[:200]) * 1.1


@pytest.mark.parametrize(
    ("id", "envelope"), [("", b""), ("a" * 129, b""), ("a", b"x" * (GENERATION_RECEIPT_BYTES_MAX + 1))]
)
def test_what_is_too_large_is_refused(id: str, envelope: bytes) -> None:
    store = Store(":memory:")
    with pytest.raises(LimitError):
        store.put(id, envelope)
    assert store.count() == 0
    store.close()


def test_bounds_that_are_none() -> None:
    with pytest.raises(InputError):
        Store(":memory:", kept=0)
    with pytest.raises(InputError):
        Store(":memory:", age_s=0)


def test_places_where_none_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path, tmp_path / "file" / "s", Path("/proc/none/s")):
        with pytest.raises(InputError):
            Store(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    text, other, later = tmp_path / "text", tmp_path / "other", tmp_path / "later"
    text.write_bytes(b"a letter to somebody, longer than a header " * 50)
    database = sqlite3.connect(other)
    database.execute("CREATE TABLE mine (x)")
    database.commit()
    database.close()
    Store(later).close()
    database = sqlite3.connect(later)
    database.execute("PRAGMA user_version = 99")
    database.close()
    contents = [path.read_bytes() for path in (text, other, later)]
    for path in (text, other, later):
        with pytest.raises(FormatError):
            Store(path)
    assert [path.read_bytes() for path in (text, other, later)] == contents


def test_damage_is_found_when_it_is_opened(tmp_path: Path) -> None:
    """Flipped and missing pages: an error of ours, or a store that still is whole; nothing else."""
    path = tmp_path / "s"
    store = Store(path)
    for n in range(200):
        store.put(f"{n:064}", b"%d" % n * 40)
    store.close()
    whole = path.read_bytes()
    rng = random.Random(1)
    refused = 0
    for _ in range(60):
        data = bytearray(whole)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        else:
            start = rng.randrange(len(data) - 64)
            data[start : start + 64] = rng.randbytes(64)
        path.write_bytes(data)
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        try:
            store = Store(path)
        except (FormatError, InputError):
            refused += 1
            continue
        store.put("new", b"x")
        assert store.get("new") == b"x"
        store.close()
    assert refused >= 10


def test_a_store_of_an_older_version_is_brought_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s"
    store = Store(path)
    store.put("a", b"x")
    store.close()
    added = (
        *store_module._MIGRATIONS,
        "ALTER TABLE receipts ADD COLUMN note TEXT; CREATE INDEX notes ON receipts (note)",
    )
    monkeypatch.setattr(store_module, "_MIGRATIONS", added)
    for _ in range(2):
        store = Store(path)
        assert store.get("a") == b"x"
        store.close()
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA user_version").fetchone() == (2,)
    assert database.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    assert database.execute("SELECT note FROM receipts").fetchall() == [(None,)]
    database.close()


def test_a_migration_that_fails_leaves_what_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s"
    store = Store(path)
    store.put("a", b"x")
    store.close()
    good = store_module._MIGRATIONS
    monkeypatch.setattr(store_module, "_MIGRATIONS", (*good, "CREATE TABLE more (x); CREATE TABLE receipts (y)"))
    with pytest.raises(InputError):
        Store(path)
    monkeypatch.setattr(store_module, "_MIGRATIONS", good)
    store = Store(path)
    assert store.get("a") == b"x"
    store.close()


def test_several_threads_and_several_stores_of_one_file(tmp_path: Path) -> None:
    path = tmp_path / "s"
    stores = [Store(path) for _ in range(3)]
    errors: list[Exception] = []

    def work(number: int) -> None:
        try:
            for n in range(40):
                stores[number % 3].put(f"{number}-{n}", b"x" * 100)
                assert stores[(number + 1) % 3].get(f"{number}-{n}") == b"x" * 100
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and stores[0].count() == 240
    for store in stores:
        store.close()


def test_a_store_that_is_taken_away_keeps_nothing_more(tmp_path: Path) -> None:
    """SQLite would go on to write into files that nobody can open again."""
    folder = tmp_path / "folder"
    store = Store(folder / "s")
    store.put("a", b"x")
    folder.rename(tmp_path / "other")
    with pytest.raises(InputError):
        store.put("b", b"x")
    Store(folder / "s").close()  # another one in its place is not the one that is written
    with pytest.raises(InputError, match="moved or removed"):
        store.put("c", b"x")
    shutil.rmtree(folder)
    (tmp_path / "other").rename(folder)
    store.put("d", b"x")
    assert store.count() == 2
    store.close()


def test_a_lock_that_another_holds_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_BUSY_MS", 300)
    store = Store(tmp_path / "s")
    other = sqlite3.connect(tmp_path / "s", isolation_level=None)
    waits: list[int] = []
    for _ in range(3):
        other.execute("BEGIN IMMEDIATE")
        for _ in range(3):
            waits.append(store._database.execute("PRAGMA busy_timeout").fetchone()[0])
            with pytest.raises(InputError, match="locked"):
                store.put("a", b"x")
        other.execute("ROLLBACK")
        store.put("b", b"x")
    assert waits == [300, 0, 0] * 3
    other.close()
    store.close()


def test_a_closed_store_says_so() -> None:
    store = Store(":memory:")
    store.close()
    with pytest.raises((FormatError, InputError)):
        store.get("a")


WRITER = """
import sys
from ree.lm.serve.store import Store
store = Store(sys.argv[1], kept=50)
for n in range(10**9):
    store.put(f"{n}", b"%d" % n * 500)
    print(n, flush=True)
"""


def test_killed_at_any_moment_it_opens_with_all_that_was_told(tmp_path: Path) -> None:
    """What stood in the output of the killed writer must be there."""
    path = tmp_path / "s"
    rng = random.Random(5)
    for round_number in range(6):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE)
        assert writer.stdout is not None
        told = [writer.stdout.readline() for _ in range(rng.randrange(1, 120))]
        time.sleep(rng.random() * 0.01)
        os.kill(writer.pid, signal.SIGKILL)
        told += writer.stdout.read().splitlines(keepends=True)
        writer.wait()
        writer.stdout.close()
        last = max(int(line) for line in told if line.endswith(b"\n"))
        store = Store(path, kept=50)
        assert store.get(str(last)) == b"%d" % last * 500, round_number
        assert store.count() <= 50
        store.close()
        for suffix in ("", "-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
