from __future__ import annotations

from collections import OrderedDict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from contracts.messages import Response, Status
from contracts.tensors import Tensor
from producer.cache import _ENTRY_BYTES, ResponseCache


def response(size: int = 8, status: Status = Status.OK) -> Response:
    return Response("r", status, "echo", 1, (Tensor.from_numpy("y", np.zeros(size, np.uint8)),))


def test_a_result_is_found_until_its_time_is_over_and_says_that_it_was_kept() -> None:
    cache = ResponseCache(ttl_seconds=10, max_bytes=10_000)
    cache.put("a", response(), 0.0)
    found = cache.get("a", 9.9)
    assert found is not None
    assert found.cached
    assert cache.get("b", 0.0) is None
    assert cache.get("a", 10.0) is None
    assert (len(cache), cache.size_bytes) == (0, 0)


def test_errors_and_what_does_not_fit_are_not_kept() -> None:
    cache = ResponseCache(ttl_seconds=10, max_bytes=2_000)
    cache.put("a", response(status=Status.POISON), 0.0)
    cache.put("b", response(2_000), 0.0)
    ResponseCache(ttl_seconds=0, max_bytes=2_000).put("c", response(), 0.0)
    assert (len(cache), cache.size_bytes) == (0, 0)


def test_the_least_recently_used_leaves_first() -> None:
    cache = ResponseCache(ttl_seconds=10, max_bytes=2 * (_ENTRY_BYTES + 8))
    for name in "ab":
        cache.put(name, response(), 0.0)
    assert cache.get("a", 1.0)
    cache.put("c", response(), 1.0)
    assert [name for name in "abc" if cache.get(name, 1.0)] == ["a", "c"]


@given(st.lists(st.tuples(st.sampled_from("pg"), st.sampled_from("abcdef"), st.integers(0, 3_000)), max_size=60))
def test_the_cache_does_what_a_simple_list_does(calls: list[tuple[str, str, int]]) -> None:
    limit = 6_000
    cache, model = ResponseCache(ttl_seconds=1e9, max_bytes=limit), OrderedDict[str, int]()
    for what, name, size in calls:
        if what == "p":
            cache.put(name, response(size), 0.0)
            model.pop(name, None)
            model[name] = size + _ENTRY_BYTES
            while sum(model.values()) > limit:
                model.popitem(last=False)
        else:
            assert (cache.get(name, 0.0) is not None) == (name in model)
            if name in model:
                model.move_to_end(name)
        assert cache.size_bytes == sum(model.values()) <= limit
        assert len(cache) == len(model)
