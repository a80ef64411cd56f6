"""Every reducer against a definition written out in plain Python, and its signature against its result."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import ConfigurationError, InvalidRequest
from contracts.reducers import REDUCERS, reduce, signature
from contracts.specs import TensorSpec
from contracts.tensors import Tensor

Array = npt.NDArray[Any]
numbers = st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0, -2.0, math.nan])
weights_of_three = st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=3, max_size=3).filter(any)


def tables(columns: int, values: st.SearchStrategy[Any] = numbers) -> st.SearchStrategy[list[list[list[Any]]]]:
    """Three members' tables of the same few rows."""
    row = st.lists(values, min_size=columns, max_size=columns)
    return st.integers(0, 4).flatmap(
        lambda rows: st.lists(st.lists(row, min_size=rows, max_size=rows), min_size=3, max_size=3)
    )


def table(rows: list[list[Any]], columns: int, dtype: Any = np.float64) -> Array:
    return np.array(rows, dtype=dtype).reshape(len(rows), columns)


def text(*elements: bytes) -> Array:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


@given(tables(1, st.integers(-2, 3)), weights_of_three)
def test_a_vote_elects_the_label_of_the_largest_sum_and_the_lowest_of_equals(
    members: list[list[list[int]]], weights: list[float]
) -> None:
    labels = [np.array([row[0] for row in member], dtype=np.int32) for member in members]
    result = reduce("vote", [{"labels": array} for array in labels], {"weights": weights})
    assert result["label"].dtype == np.int32
    for row in range(len(labels[0])):
        tally: dict[int, float] = defaultdict(float)
        for array, weight in zip(labels, weights, strict=True):
            if weight:
                tally[int(array[row])] += weight
        expected = min(tally, key=lambda label: (-tally[label], label))
        assert result["label"][row] == expected
        assert result["votes"][row] == tally[expected]
        assert result["agreement"][row] == pytest.approx(tally[expected] / sum(weights))


def test_text_can_be_voted_for() -> None:
    members = [{"labels": text(b"cat", b"x")}, {"labels": text(b"ape", b"y")}, {"labels": text(b"cat", b"w")}]
    assert reduce("vote", members)["label"].tolist() == [b"cat", b"w"]


@given(tables(3), weights_of_three)
def test_a_vote_by_scores_abstains_where_all_are_nan(members: list[list[list[float]]], weights: list[float]) -> None:
    result = reduce("vote", [{"scores": table(member, 3)} for member in members], {"weights": weights})
    for row in range(len(members[0])):
        tally: dict[int, float] = defaultdict(float)
        for member, weight in zip(members, weights, strict=True):
            known = [column for column in range(3) if not math.isnan(member[row][column])]
            if known and weight:
                tally[max(known, key=lambda column: (member[row][column], -column))] += weight
        expected = min(tally, key=lambda label: (-tally[label], label)) if tally else -1
        assert result["label"][row] == expected
        assert result["votes"][row] == tally.get(expected, 0.0)


@given(tables(3), weights_of_three)
def test_a_soft_vote_is_the_weighted_mean_without_members_that_are_not_numbers(
    members: list[list[list[float]]], weights: list[float]
) -> None:
    given_ = [{"probabilities": table(member, 3, np.float32)} for member in members]
    result = reduce("soft_vote", given_, {"weights": weights})
    assert result["probabilities"].dtype == np.float32
    for row in range(len(members[0])):
        sound = [
            (member[row], weight)
            for member, weight in zip(members, weights, strict=True)
            if weight and not any(math.isnan(value) for value in member[row])
        ]
        if not sound:
            assert result["label"][row] == -1
            assert np.isnan(result["probabilities"][row]).all()
            assert np.isnan(result["confidence"][row])
            continue
        total = sum(weight for _, weight in sound)
        expected = [sum(values[column] * weight for values, weight in sound) / total for column in range(3)]
        assert result["probabilities"][row] == pytest.approx(expected)
        assert result["label"][row] == expected.index(max(expected))
        assert result["confidence"][row] == result["probabilities"][row][result["label"][row]]


@given(tables(2), weights_of_three, st.sampled_from(["propagate", "ignore"]))
def test_a_mean_is_taken_element_by_element(members: list[list[list[float]]], weights: list[float], nan: str) -> None:
    result = reduce("weighted_mean", [{"x": table(m, 2)} for m in members], {"weights": weights, "nan": nan})["x"]
    for row in range(len(members[0])):
        for column in range(2):
            pairs = [(m[row][column], w) for m, w in zip(members, weights, strict=True) if w]
            spoilt = any(math.isnan(value) for value, _ in pairs)
            if nan == "ignore":
                pairs = [(value, weight) for value, weight in pairs if not math.isnan(value)]
                spoilt = not pairs
            if spoilt:
                assert np.isnan(result[row][column])
            else:
                exact = sum(Fraction(v) * Fraction(w) for v, w in pairs) / sum(Fraction(w) for _, w in pairs)
                assert result[row][column] == pytest.approx(float(exact))


@given(st.integers(1, 4), tables(2), st.sampled_from(["propagate", "ignore"]))
def test_a_median_is_the_middle_or_the_mean_of_the_middle_two(
    count: int, three: list[list[list[float]]], nan: str
) -> None:
    members = [three[index % 3] for index in range(count)]
    result = reduce("median", [{"x": table(member, 2)} for member in members], {"nan": nan})["x"]
    for row in range(len(members[0])):
        for column in range(2):
            values = sorted(m[row][column] for m in members if not math.isnan(m[row][column]))
            if not values or (nan == "propagate" and len(values) < len(members)):
                assert np.isnan(result[row][column])
            else:
                middle = (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
                assert result[row][column] == middle


def test_a_median_of_infinities_is_one_of_them() -> None:
    inf = math.inf
    members = [{"x": np.array([inf, -inf, inf])}, {"x": np.array([inf, -inf, -inf])}]
    middle = reduce("median", members)["x"]
    assert middle[:2].tolist() == [inf, -inf]
    assert np.isnan(middle[2])


def test_whole_numbers_have_fractional_means() -> None:
    result = reduce("mean", [{"x": np.array([1], np.int8)}, {"x": np.array([2], np.int8)}])
    assert result["x"].dtype == np.float64
    assert result["x"].tolist() == [1.5]


@given(tables(1))
def test_max_confidence_takes_the_whole_row_of_the_surest_member(members: list[list[list[float]]]) -> None:
    given_ = [
        {"confidence": table(member, 1)[:, 0], "answer": np.full((len(member), 2), place)}
        for place, member in enumerate(members)
    ]
    result = reduce("max_confidence", given_)
    for row in range(len(members[0])):
        known = [place for place in range(3) if not math.isnan(members[place][row][0])]
        expected = max(known, key=lambda place: (members[place][row][0], -place)) if known else 0
        assert result["member"][row] == expected
        assert result["answer"][row].tolist() == [expected, expected]


def test_max_confidence_prefers_any_number_to_nan_and_names_the_place_among_all_members() -> None:
    members: list[dict[str, Array] | None] = [
        None,
        {"confidence": np.array([math.nan])},
        {"confidence": np.array([-math.inf])},
    ]
    assert reduce("max_confidence", members)["member"].tolist() == [2]


def test_max_confidence_reads_it_off_probabilities() -> None:
    members = [
        {"probabilities": np.array([[0.5, 0.5], [0.1, 0.9]], np.float32)},
        {"probabilities": np.array([[0.4, 0.6], [0.9, 0.1]], np.float32)},
    ]
    result = reduce("max_confidence", members)
    assert result["member"].tolist() == [1, 0]
    assert result["label"].tolist() == [1, 1]
    assert result["confidence"].tolist() == pytest.approx([0.6, 0.9])


@given(tables(4, st.integers(-1, 6)), weights_of_three, st.integers(1, 8))
def test_rank_fusion_sums_reciprocal_ranks(members: list[list[list[int]]], weights: list[float], top: int) -> None:
    given_ = [{"ids": table(member, 4, np.int64)} for member in members]
    result = reduce("rank_fusion", given_, {"weights": weights, "k": 10, "top": top})
    assert result["ids"].shape == result["scores"].shape == (len(members[0]), top)
    for row in range(len(members[0])):
        scores: dict[int, float] = defaultdict(float)
        for member, weight in zip(members, weights, strict=True):
            for label in {label for label in member[row] if label >= 0 and weight}:
                scores[label] += weight / (10 + 1 + member[row].index(label))
        best = sorted(scores, key=lambda label: (-scores[label], label))[:top]
        assert result["ids"][row].tolist() == best + [-1] * (top - len(best))
        assert result["scores"][row].tolist() == [scores[label] for label in best] + [0.0] * (top - len(best))


def test_ranked_texts_of_different_lengths_can_be_fused() -> None:
    first, second = text(b"a", b"b", b"").reshape(1, 3), text(b"b").reshape(1, 1)
    result = reduce("rank_fusion", [{"ids": first}, {"ids": second}])
    assert result["ids"].tolist() == [[b"b", b"a", b""]]


def test_concat_puts_rows_one_after_the_other_and_leaves_out_who_is_absent() -> None:
    members: list[dict[str, Array] | None] = [{"x": np.array([[1], [2]])}, None, {"x": np.array([[3]])}]
    assert reduce("concat", members)["x"].tolist() == [[1], [2], [3]]
    assert reduce("concat", [members[0], members[0]], {"axis": 1})["x"].tolist() == [[1, 1], [2, 2]]


def test_stack_puts_columns_side_by_side_and_needs_everybody() -> None:
    members: list[dict[str, Array] | None] = [{"f": np.array([[1.0, 2.0]], np.float32)}, {"f": np.array([7], np.int64)}]
    result = reduce("stack", members, {"datatype": "FP32"})["f"]
    assert result.dtype == np.float32
    assert result.tolist() == [[1.0, 2.0, 7.0]]
    with pytest.raises(InvalidRequest, match="member 1 is absent"):
        reduce("stack", [members[0], None])


def test_first_of_takes_the_first_that_is_there() -> None:
    array = np.array([1, 2])
    assert reduce("first_of", [None, {"x": array}, {"x": -array}])["x"].tolist() == [1, 2]


_members: dict[str, Callable[[int, int], dict[str, Array]]] = {
    "vote": lambda rows, seed: {"labels": np.arange(seed, seed + rows)},
    "soft_vote": lambda rows, seed: {"probabilities": np.full((rows, 3), 0.1 * seed, np.float32)},
    "mean": lambda rows, seed: {"a": np.full((rows, 2), seed, np.int16), "b": np.full(rows, seed, np.float16)},
    "weighted_mean": lambda rows, seed: {"a": np.full((rows, 2), seed, np.float64)},
    "median": lambda rows, seed: {"a": np.full((rows, 2), seed, np.float32)},
    "max_confidence": lambda rows, seed: {
        "probabilities": np.full((rows, 3), 0.1 * seed, np.float32),
        "name": text(*[b"n"] * rows),
    },
    "rank_fusion": lambda rows, seed: {"ids": np.arange(rows * 4).reshape(rows, 4) + seed},
    "concat": lambda rows, seed: {"a": np.full((rows, 2), seed, np.uint8)},
    "first_of": lambda rows, seed: {"a": np.full((rows, 2), seed, np.uint8), "t": text(*[b"n"] * rows)},
    "stack": lambda rows, seed: {"a": np.full((rows, seed), seed, np.float32), "b": np.full(rows, seed, np.int8)},
}


def _spec(name: str, array: Array) -> TensorSpec:
    return TensorSpec(name=name, datatype=Tensor.from_numpy(name, array).datatype, shape=(-1, *array.shape[1:]))


@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("name", REDUCERS)
def test_the_signature_foretells_names_datatypes_and_shapes(name: str, rows: int) -> None:
    members = [_members[name](rows, seed) for seed in (1, 2, 3)]
    options = {"weights": [1, 2, 3]} if name == "weighted_mean" else {}
    foretold = signature(name, [{key: _spec(key, m[key]) for key in m} for m in members], options)
    result = reduce(name, members, options)
    assert list(result) == list(foretold)
    for key, array in result.items():
        assert Tensor.from_numpy(key, array).datatype == foretold[key].datatype
        assert len(array.shape) == len(foretold[key].shape)
        assert len(array) == (3 * rows if name == "concat" else rows)
        assert all(b in (-1, a) for a, b in zip(array.shape, foretold[key].shape, strict=True))


@pytest.mark.parametrize("name", REDUCERS)
def test_a_reducer_neither_changes_its_members_nor_answers_differently_the_second_time(name: str) -> None:
    members = [_members[name](3, seed) for seed in (2, 1)]
    for member in members:
        for array in member.values():
            array.flags.writeable = False
    options = {"weights": [0.1, 0.2]} if name == "weighted_mean" else {}
    first, second = reduce(name, members, options), reduce(name, members, options)
    assert all(Tensor.from_numpy(key, first[key]) == Tensor.from_numpy(key, second[key]) for key in first)


@pytest.mark.parametrize("name", REDUCERS)
def test_nobody_present_is_an_error_and_not_a_guess(name: str) -> None:
    with pytest.raises(InvalidRequest, match="none of the 2 members"):
        reduce(name, [None, None], {"weights": [1, 1]} if name == "weighted_mean" else {})


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("vote", {"labels": np.array([1])}, {"labels": np.array([1, 2])}),
        ("vote", {"labels": np.array([1])}, {"labels": np.array([1], np.int8)}),
        ("vote", {"labels": np.array([1])}, {"scores": np.array([[1.0]])}),
        ("soft_vote", {"probabilities": np.ones((1, 2))}, {"probabilities": np.ones((1, 3))}),
        ("soft_vote", {"probabilities": np.ones(2)}, {"probabilities": np.ones(2)}),
        ("mean", {"x": np.ones((1, 2))}, {"x": np.ones((2, 1))}),
        ("max_confidence", {"confidence": np.ones(2)}, {"confidence": np.ones(1)}),
        ("rank_fusion", {"ids": np.ones((1, 2))}, {"ids": np.ones((2, 2))}),
        ("concat", {"x": np.ones((1, 2))}, {"x": np.ones((1, 3))}),
        ("concat", {"x": np.ones(1)}, {"x": text(b"a")}),
        ("stack", {"x": np.ones((1, 2))}, {"x": np.ones((2, 2))}),
    ],
)
def test_members_that_do_not_fit_together_are_refused(name: str, first: Any, second: Any) -> None:
    with pytest.raises(InvalidRequest):
        reduce(name, [first, second])


def _declared(datatype: str, *shape: int) -> TensorSpec:
    return TensorSpec(name="t", datatype=datatype, shape=shape)


@pytest.mark.parametrize(
    ("name", "members", "options", "reason"),
    [
        ("average", [{"x": _declared("FP32", -1)}], {}, "unknown reducer"),
        ("mean", [{"x": _declared("FP32", -1)}], {"weights": [1]}, "no option 'weights'"),
        ("weighted_mean", [{"x": _declared("FP32", -1)}], {}, "must list one number"),
        ("weighted_mean", [{"x": _declared("FP32", -1)}], {"weights": [-1]}, "from 0"),
        ("weighted_mean", [{"x": _declared("FP32", -1)}], {"weights": [0]}, "above 0"),
        ("mean", [], {}, "at least one member"),
        ("mean", [{"x": _declared("BYTES", -1)}], {}, "BYTES"),
        ("mean", [{"x": _declared("BF16", -1)}], {}, "BF16"),
        ("mean", [{"x": _declared("FP32", -1, 2)}, {"x": _declared("FP32", -1, 3)}], {}, "shape"),
        ("mean", [{"x": _declared("FP32", -1)}, {"y": _declared("FP32", -1)}], {}, "member 1 has tensors"),
        ("mean", [{"x": _declared("FP32", -1)}], {"nan": "zero"}, "'propagate' or 'ignore'"),
        ("vote", [{"labels": _declared("FP32", -1)}], {}, "FP32"),
        ("vote", [{"x": _declared("INT64", -1)}], {}, "'labels' or 'scores'"),
        ("soft_vote", [{"probabilities": _declared("FP32", -1)}], {}, "2 dimensions"),
        ("max_confidence", [{"x": _declared("FP32", -1)}], {}, "to compare"),
        ("rank_fusion", [{"ids": _declared("INT64", -1, 3)}], {"k": 0}, "whole number from 1"),
        ("concat", [{"x": _declared("FP32", -1)}], {"axis": 1}, "none numbered 1"),
        ("stack", [{"x": _declared("BYTES", -1)}], {"datatype": "FP32"}, "cannot become"),
    ],
)
def test_what_cannot_work_is_found_before_anything_runs(name: str, members: Any, options: Any, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        signature(name, members, options)


def test_sizes_that_only_one_member_knows_hold_for_all() -> None:
    signed = signature("concat", [{"x": _declared("INT8", -1, -1)}, {"x": _declared("FP32", -1, 4)}])
    assert (signed["x"].datatype, signed["x"].shape) == ("FP32", (-1, 4))
    wide = signature("stack", [{"x": _declared("FP32", -1, 3)}, {"x": _declared("FP32", -1)}])
    assert wide["x"].shape == (-1, 4)
