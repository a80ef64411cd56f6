"""What the log knows besides records survives kill -9 at any byte."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kio.schema.errors import ErrorCode

from contracts.errors import ConfigurationError
from deploy.embedded.log_config import SETTINGS, parse_config
from deploy.embedded.log_store import Journal, Store
from deploy.embedded.log_wire import LogError
from tests.contract.log_raw import make_batch
from tests.helpers import FakeClock

CHANGES = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2), st.none() | st.integers(0, 9)), max_size=30)


@given(CHANGES)
def test_a_journal_is_a_dictionary_that_is_read_again(changes: list[tuple[str, int, int | None]]) -> None:
    with TemporaryDirectory() as folder:
        journal, expected = Journal(Path(folder) / "journal"), {}
        for name, number, value in changes:
            journal.put(name, number, value=value)
            expected[name, number] = value
        kept = {key: value for key, value in expected.items() if value is not None}
        journal.close()
        for again in (Journal(Path(folder) / "journal"), Journal(Path(folder) / "journal")):
            assert dict(again.under()) == kept
            assert dict(again.under("a")) == {key[1:]: value for key, value in kept.items() if key[0] == "a"}
            again.close()


@given(st.data())
def test_a_torn_journal_has_every_change_that_was_whole(data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        journal = Journal(path)
        sizes = []
        for number in range(5):
            journal.put("k", number, value="é" * number)
            sizes.append(path.stat().st_size)
        journal.close()
        cut = data.draw(st.integers(0, sizes[-1]))
        path.write_bytes(path.read_bytes()[:cut])
        again = Journal(path)
        assert len(again.under("k")) == sum(size <= cut for size in sizes)
        again.put("k", 9, value=1)
        again.close()
        last = Journal(path)
        assert last.get("k", 9) == 1
        last.close()


def test_a_journal_of_old_lines_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.embedded.log_store._JOURNAL_SLACK_LINES", 10)
    journal = Journal(tmp_path / "journal")
    for number in range(1000):
        journal.put("offset", value=number)
    assert len((tmp_path / "journal").read_bytes().splitlines()) < 15
    assert journal.get("offset") == 999
    journal.close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path, FakeClock())


def test_topics_their_settings_and_records_are_there_again(store: Store, tmp_path: Path) -> None:
    store.create_topic("t", 2, {"retention.ms": "5000"}, dry_run=False)
    store.grow_topic("t", 3, dry_run=False)
    store.partition("t", 2).append(make_batch([b"v"] * 4), 0)
    assert store.delete_records("t", 2, 3) == 3
    first_id = store.next_producer_id()
    store.close()
    again = Store(tmp_path, FakeClock())
    assert len(again.topic("t").partitions) == 3
    assert again.topic("t").config.retention_ms == 5000
    assert (again.partition("t", 2).start_offset, again.partition("t", 2).end_offset) == (3, 4)
    assert again.next_producer_id() == first_id + 1
    again.close()


def test_a_dry_run_changes_nothing(store: Store) -> None:
    store.create_topic("t", 1, {}, dry_run=True)
    assert not store.topics
    store.create_topic("t", 1, {}, dry_run=False)
    store.grow_topic("t", 2, dry_run=True)
    store.configure_topic("t", {"retention.ms": "1"}, dry_run=True)
    assert (len(store.topic("t").partitions), store.topic("t").config.overrides) == (1, {})
    store.close()


def test_a_deleted_topic_leaves_nothing(store: Store, tmp_path: Path) -> None:
    for name in ("t", "u"):
        store.create_topic(name, 1, {}, dry_run=False)
        store.journal.put("offset", "group", name, 0, value=[1, -1, ""])
        store.partition(name, 0).append(make_batch([b"v"]), 0)
        store.delete_records(name, 0, 1)
    store.delete_topic("t")
    assert [path.name for path in (tmp_path / "topics").iterdir()] == ["u"]
    assert [key for key, _ in store.journal.under()] == [("topic", "u"), ("offset", "group", "u", 0), ("start", "u", 0)]
    store.create_topic("t", 1, {}, dry_run=False)
    assert store.partition("t", 0).end_offset == 0
    store.close()


def test_a_deletion_that_was_cut_short_is_finished_at_the_next_start(store: Store, tmp_path: Path) -> None:
    store.create_topic("t", 1, {}, dry_run=False)
    store.partition("t", 0).append(make_batch([b"v"]), 0)
    store.journal.put("topic", "t", value=None)
    store.close()
    again = Store(tmp_path, FakeClock())
    assert not again.topics
    assert not list((tmp_path / "topics").iterdir())
    again.close()


def test_two_logs_cannot_share_a_folder(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="another embedded log"):
        Store(tmp_path, FakeClock())
    store.close()
    Store(tmp_path, FakeClock()).close()


def test_retention_reads_the_clock_it_was_given(tmp_path: Path) -> None:
    clock = FakeClock()
    store = Store(tmp_path, clock)
    store.create_topic("t", 1, {"retention.ms": "1000", "message.timestamp.type": "LogAppendTime"}, dry_run=False)
    store.partition("t", 0).append(make_batch([b"v"]), clock.unix_ms())
    store.enforce_retention()
    assert store.partition("t", 0).start_offset == 0
    clock.advance(2)
    store.enforce_retention()
    assert store.partition("t", 0).start_offset == 1
    store.close()


@pytest.mark.parametrize("name", ["", ".", "..", "a b", "é", "x" * 250, "a/b"])
def test_names_that_could_leave_the_folder_are_refused(store: Store, name: str) -> None:
    with pytest.raises(LogError) as caught:
        store.create_topic(name, 1, {}, dry_run=False)
    assert caught.value.code is ErrorCode.invalid_topic_exception
    store.close()


def test_every_default_is_a_value_that_can_be_set() -> None:
    parse_config({name: setting.default for name, setting in SETTINGS.items()})


@pytest.mark.parametrize(
    ("name", "value"),
    [("retention.ms", "-2"), ("retention.ms", "soon"), ("cleanup.policy", "compact"), ("segment.ms", "1")],
)
def test_what_would_not_be_done_is_refused(name: str, value: str) -> None:
    with pytest.raises(LogError) as caught:
        parse_config({name: value})
    assert caught.value.code is ErrorCode.invalid_config
