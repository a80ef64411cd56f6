"""Who can use a device on one machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import ConfigurationError, LeaseLost
from contracts.pool import Lease, Mode, Share
from workers.agent.locks import Locks, ShareBusy, Tokens, lock_folder


def lease(name: str, token: int, mode: Mode = "slice", *devices: str) -> Lease:
    return Lease(
        id=name,
        token=token,
        deployment="d@1",
        models=("d@1",),
        tenant="",
        node="n",
        mode=mode,
        shares=tuple(Share(device, 1, 1) for device in devices or ("GPU-1",)),
        state="reserved",
        expires_unix_ms=0,
        created_unix_ms=0,
    )


@pytest.fixture
def locks(tmp_path: Path) -> Locks:
    return Locks(tmp_path / "locks", "default")


def test_leases_that_share_a_device_hold_it_together(locks: Locks) -> None:
    first, second = locks.acquire(lease("a", 5)), locks.acquire(lease("b", 7))
    locks.acquire(lease("a", 5)).close()  # its engine is started again
    first.close()
    second.close()


def test_a_whole_device_has_one_holder(locks: Locks) -> None:
    whole = locks.acquire(lease("a", 5, "whole"))
    with pytest.raises(ShareBusy):
        locks.acquire(lease("b", 6, "whole"))
    with pytest.raises(ShareBusy):
        locks.acquire(lease("c", 7))
    whole.close()
    locks.acquire(lease("c", 8)).close()


def test_a_token_that_was_overtaken_is_refused_although_nobody_holds_the_device(locks: Locks) -> None:
    locks.acquire(lease("a", 9, "whole")).close()
    with pytest.raises(LeaseLost, match="has seen 9"):
        locks.acquire(lease("old", 8, "whole"))
    with pytest.raises(LeaseLost):
        locks.acquire(lease("old", 8))
    locks.acquire(lease("a", 9, "whole")).close()
    locks.acquire(lease("b", 10, "whole")).close()


def test_tokens_are_remembered_by_the_disk_and_separately_for_each_pool(tmp_path: Path) -> None:
    Locks(tmp_path, "blue").acquire(lease("a", 9, "whole")).close()
    with pytest.raises(LeaseLost):
        Locks(tmp_path, "blue").acquire(lease("b", 8, "whole"))
    Locks(tmp_path, "green").acquire(lease("b", 8, "whole")).close()


def test_a_gang_takes_all_of_its_devices_or_none(locks: Locks) -> None:
    held = locks.acquire(lease("a", 5, "whole", "GPU-2"))
    with pytest.raises(ShareBusy):
        locks.acquire(lease("gang", 6, "whole", "GPU-1", "GPU-2"))
    locks.acquire(lease("b", 7, "whole", "GPU-1")).close()
    held.close()


def test_a_process_that_inherited_the_lock_keeps_the_device_when_its_agent_is_gone(locks: Locks) -> None:
    lock = locks.acquire(lease("a", 5, "whole"))
    waiting = [sys.executable, "-S", "-c", "input()"]
    with subprocess.Popen(waiting, stdin=subprocess.PIPE, pass_fds=lock.descriptors) as child:
        lock.close()
        with pytest.raises(ShareBusy):
            locks.acquire(lease("b", 6, "whole"))
        child.communicate(b"\n")
    locks.acquire(lease("b", 6, "whole")).close()


def test_a_torn_file_of_tokens_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "default.GPU-1.tokens").write_bytes(b"000000000")
    (tmp_path / "default.GPU-1.tokens").chmod(0o600)
    Locks(tmp_path, "default").acquire(lease("a", 5)).close()


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(ConfigurationError, match="nobody else may write"):
        Locks(shared, "default").acquire(lease("a", 5))


def test_a_folder_of_a_group_is_made_private(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o775)
    Locks(shared, "default").acquire(lease("a", 5)).close()
    assert shared.stat().st_mode & 0o777 == 0o755


def test_a_run_folder_has_one_agent(tmp_path: Path) -> None:
    held = lock_folder(tmp_path)
    assert held is not None
    assert lock_folder(tmp_path) is None
    os.close(held)
    again = lock_folder(tmp_path)
    assert again is not None
    os.close(again)


@given(st.lists(st.tuples(st.integers(1, 30), st.booleans()), max_size=30))
def test_a_whole_lease_is_never_older_than_any_before_it(grants: list[tuple[int, bool]]) -> None:
    seen, admitted = Tokens(), [(0, False)]
    for token, is_whole in grants:
        after = seen.admit(token, is_whole=is_whole)
        overtaken = any(token < other and (is_whole or other_whole) for other, other_whole in admitted)
        assert (after is None) == overtaken
        if after is not None:
            seen = after
            admitted.append((token, is_whole))
