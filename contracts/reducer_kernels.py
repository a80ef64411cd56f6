"""The arithmetic of the reducers: one function for each, and its exact definition in its docstring.

Sums run in member order and in double precision. A member of weight 0 is left out like an absent one. "Row" is the
first dimension of every tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from contracts.errors import InvalidRequest
from contracts.tensors import numpy_type

Array = npt.NDArray[Any]
Options = Mapping[str, Any]

NO_LABEL = -1
"""The label of a row for which no member could vote, and the id of an empty place in a fused ranking."""
_DEFAULT_K = 60  # the constant of reciprocal rank fusion as it was published


class Present(NamedTuple):
    """A member that is there: its place among all, its weight and its tensors."""

    place: int
    weight: float
    tensors: Mapping[str, Array]


def vote(members: list[Present], _: Options) -> dict[str, Array]:
    """Each member casts its weight (1 by default) for one label per row; the label with the largest sum wins.

    `labels` [n] of one datatype (integers, BOOL, BYTES), or `scores` [n, classes], whose largest value is the vote
    (the first of equals). A NaN score is never the largest; a member whose scores are all NaN in a row abstains there.
    Ties: the lowest label (BYTES: in byte order). Returns `label` [n], `votes` [n] (the winner's sum, FP64) and
    `agreement` [n] (its share of what was cast, FP64). Where all abstain: label −1, votes 0, agreement 0.
    """
    used = _weighty(members, "vote")
    if "labels" in used[0].tensors:
        ballots = [_tensor(member, "labels", 1) for member in used]
        _same_types("labels", used, ballots)
        cast = [np.ones(ballot.shape, np.bool_) for ballot in ballots]
    else:
        scores = [_tensor(member, "scores", 2) for member in used]
        _same_shapes("scores", used, scores)
        ballots = [_best_column(array) for array in scores]
        cast = [ballot != NO_LABEL for ballot in ballots]
    _same_shapes("labels", used, ballots)
    rows = len(ballots[0])
    row = np.concatenate([np.flatnonzero(mask) for mask in cast])
    label = np.concatenate([ballot[mask] for ballot, mask in zip(ballots, cast, strict=True)])
    weight = np.concatenate([np.full(int(mask.sum()), member.weight) for member, mask in zip(used, cast, strict=True)])
    total = np.bincount(row, weights=weight, minlength=rows)
    winner = np.full(rows, NO_LABEL, dtype=ballots[0].dtype) if "labels" not in used[0].tensors else ballots[0].copy()
    votes = np.zeros(rows)
    for place, found, sums in _ranked(row, label, weight):
        first = np.unique(place, return_index=True)[1]
        winner[place[first]], votes[place[first]] = found[first], sums[first]
    agreement = np.divide(votes, total, out=np.zeros(rows), where=total > 0)
    return {"label": winner, "votes": votes, "agreement": agreement}


def soft_vote(members: list[Present], _: Options) -> dict[str, Array]:
    """The weighted mean of `probabilities` [n, classes], its largest class and that class's value.

    A member whose row holds a NaN or an infinity is left out of that row, and so is its weight. Returns
    `probabilities` (the widest of the members' floating types), `label` [n] INT64 (ties: the lowest class) and
    `confidence` [n]. Where every member is left out: probabilities and confidence NaN, label −1.
    """
    used = _weighty(members, "soft_vote")
    arrays = [_tensor(member, "probabilities", 2) for member in used]
    _same_shapes("probabilities", used, arrays)
    total, weight = np.zeros(arrays[0].shape), np.zeros(len(arrays[0]))
    for member, array in zip(used, arrays, strict=True):
        sound = np.isfinite(array).all(axis=1)
        total[sound] += member.weight * array[sound].astype(np.float64)
        weight += member.weight * sound
    probabilities = np.divide(
        total,
        weight[:, None],
        out=np.full(total.shape, np.nan),
        where=np.broadcast_to(weight[:, None] > 0, total.shape),
    )
    label = _best_column(probabilities)
    narrow = probabilities.astype(_mean_type(arrays))
    return {"probabilities": narrow, "label": label, "confidence": _at(narrow, label)}


def mean(members: list[Present], options: Options) -> dict[str, Array]:
    """The (weighted) mean of each tensor, element by element; `mean` is the one with all weights 1.

    All shapes must be equal. Computed in FP64; the result has the widest of the members' types if all are floating,
    else FP64. `nan: propagate` (the default): an element that is NaN in one member is NaN. `nan: ignore`: it is left
    out with its weight, and NaN only where it is NaN in all.
    """
    used, ignores = _weighty(members, "weighted_mean"), options.get("nan") == "ignore"
    result: dict[str, Array] = {}
    for name in used[0].tensors:
        arrays = _aligned(name, used)
        total, weight = np.zeros(arrays[0].shape), np.zeros(arrays[0].shape)
        for member, array in zip(used, arrays, strict=True):
            values = array.astype(np.float64)
            counted = ~np.isnan(values) if ignores else np.ones(values.shape, np.bool_)
            total += np.where(counted, member.weight * values, 0.0)
            weight += member.weight * counted
        result[name] = np.divide(total, weight, out=np.full(total.shape, np.nan), where=weight > 0).astype(
            _mean_type(arrays)
        )
    return result


def median(members: list[Present], options: Options) -> dict[str, Array]:
    """The median of each tensor, element by element; of an even number the mean of the middle two.

    Shapes, types and `nan` as in `mean`.
    """
    result: dict[str, Array] = {}
    for name in members[0].tensors:
        arrays = _aligned(name, members)
        values = np.sort(np.stack([array.astype(np.float64) for array in arrays]), axis=0)  # NaN is sorted to the end
        unknown = np.isnan(values).sum(axis=0)
        known = len(arrays) - unknown
        low = np.take_along_axis(values, np.maximum((known - 1) // 2, 0)[None], axis=0)[0]
        high = np.take_along_axis(values, np.minimum(known // 2, len(arrays) - 1)[None], axis=0)[0]
        # Equal neighbours are their own mean, also where they are infinite; halves first, so that no sum overflows.
        middle = np.where(low == high, low, low / 2 + high / 2)
        spoilt = known == 0 if options.get("nan") == "ignore" else unknown > 0
        result[name] = np.where(spoilt, np.nan, middle).astype(_mean_type(arrays))
    return result


def max_confidence(members: list[Present], _: Options) -> dict[str, Array]:
    """For each row all tensors of the member that is surest of it.

    How sure: `confidence` [n], else the largest of `probabilities` [n, classes]. Ties: the first member. NaN loses
    against every number; where all are NaN the first member present is taken. Tensors of one name must have one
    datatype and one shape. Returns every tensor row by row from the chosen member, `confidence`, `member` [n] INT64
    (its place among all members), and with `probabilities` but no `label` among the inputs also `label` [n] INT64 (the
    largest class, the lowest of equals; −1 where all are NaN).
    """
    given = members[0].tensors
    columns = {name: _aligned(name, members) for name in given}
    for name, arrays in columns.items():
        _same_types(name, members, arrays)
    if "confidence" in given:
        confidences = [_tensor(member, "confidence", 1) for member in members]
    else:
        tables = [_tensor(member, "probabilities", 2) for member in members]
        confidences = [_at(table, _best_column(table)) for table in tables]
    sureness = np.stack([np.where(np.isnan(values), -np.inf, values) for values in confidences])
    # An honest −∞ ties with NaN; a number beats both, and among them the one that is a number comes first.
    numbered = np.stack([~np.isnan(values) for values in confidences])
    best = sureness == sureness.max(axis=0, initial=-np.inf)
    preferred = np.where((best & numbered).any(axis=0), best & numbered, best)
    choice = preferred.argmax(axis=0)
    every = np.arange(len(choice))
    result = {name: np.stack(arrays)[choice, every] for name, arrays in columns.items()}
    result.setdefault("confidence", np.stack(confidences)[choice, every])
    if "probabilities" in given and "label" not in given:
        result["label"] = _best_column(result["probabilities"])
    return {**result, "member": np.array([member.place for member in members], dtype=np.int64)[choice]}


def rank_fusion(members: list[Present], options: Options) -> dict[str, Array]:
    """Reciprocal rank fusion: an id's score is the sum of weight / (k + rank) over the lists that have it.

    `ids` [n, places], best first, rank from 1; lists may differ in length. Negative numbers and empty BYTES are empty
    places (they keep their rank); an id that stands twice in a list counts at its better place. Ties: the smaller id.
    `k` is 60 unless given. Returns `ids` [n, top] (INT64 or BYTES) and `scores` [n, top] FP64, best first; `top` is
    the longest list's length unless given; places left over hold −1 or empty BYTES and score 0.
    """
    used, k = _weighty(members, "rank_fusion"), int(options.get("k", _DEFAULT_K))
    lists = [_tensor(member, "ids", 2) for member in used]
    rows = _same_rows("ids", used, lists)
    is_text = lists[0].dtype == object
    if any((array.dtype == object) != is_text for array in lists):
        raise InvalidRequest("rank_fusion: ids are BYTES in some members and numbers in others")
    parts: list[tuple[Array, Array, Array]] = []
    for member, array in zip(used, lists, strict=True):
        ids = array if is_text else array.astype(np.int64)
        row, column = np.nonzero(ids != b"" if is_text else ids >= 0)
        parts.append((row, ids[row, column], member.weight / (k + 1.0 + column)))
    row, label, score = (np.concatenate(arrays) for arrays in zip(*map(_without_repeats, parts), strict=True))
    top = int(options.get("top") or max(array.shape[1] for array in lists))
    fused = np.full((rows, top), b"" if is_text else NO_LABEL, dtype=object if is_text else np.int64)
    scores = np.zeros((rows, top))
    for place, found, sums in _ranked(row, label, score):
        starts = np.searchsorted(place, np.arange(rows))
        rank = np.arange(len(place)) - starts[place]
        kept = rank < top
        fused[place[kept], rank[kept]], scores[place[kept], rank[kept]] = found[kept], sums[kept]
    return {"ids": fused, "scores": scores}


def concat(members: list[Present], options: Options) -> dict[str, Array]:
    """Each tensor of the members one after the other along `axis` (0 by default: all rows of the first, then …).

    All other sizes must agree. Numbers of different types become the type that holds both (numpy's promotion).
    """
    return {
        name: _concatenated(
            "concat", name, members, [_tensor(member, name) for member in members], options.get("axis", 0)
        )
        for name in members[0].tensors
    }


def first_of(members: list[Present], _: Options) -> dict[str, Array]:
    """The tensors of the first member present, in the order in which the members are listed."""
    return dict(members[0].tensors)


def stack(members: list[Present], options: Options) -> dict[str, Array]:
    """Each tensor of the members side by side (along the last dimension), as one input of a model.

    A tensor [n] is a column [n, 1]. All members must be present. Types as in `concat`, or `datatype` if given
    (converted as numpy does: fractions are cut off).
    """
    result: dict[str, Array] = {}
    for name in members[0].tensors:
        arrays = [_tensor(member, name) for member in members]
        wide = [array[:, None] if array.ndim == 1 else array for array in arrays]
        joined = _concatenated("stack", name, members, wide, -1)
        result[name] = joined.astype(numpy_type(options["datatype"])) if options.get("datatype") else joined
    return result


def _weighty(members: list[Present], what: str) -> list[Present]:
    used = [member for member in members if member.weight > 0]
    if not used:
        raise InvalidRequest(f"{what}: all members present have weight 0")
    return used


def _tensor(member: Present, name: str, rank: int | None = None) -> Array:
    array = member.tensors.get(name)
    if array is None:
        raise InvalidRequest(f"member {member.place} has no tensor {name!r}; it has {sorted(member.tensors)}")
    if array.ndim == 0 or (rank is not None and array.ndim != rank):
        msg = f"{name!r} of member {member.place} has shape {list(array.shape)} instead of {rank or 'some'} dimensions"
        raise InvalidRequest(msg)
    return array


def _aligned(name: str, members: list[Present]) -> list[Array]:
    arrays = [_tensor(member, name) for member in members]
    _same_shapes(name, members, arrays)
    return arrays


def _same_shapes(name: str, members: list[Present], arrays: list[Array]) -> None:
    for member, array in zip(members, arrays, strict=True):
        if array.shape != arrays[0].shape:
            msg = (
                f"{name!r} has shape {list(arrays[0].shape)} in member {members[0].place} "
                f"and {list(array.shape)} in member {member.place}"
            )
            raise InvalidRequest(msg)


def _same_rows(name: str, members: list[Present], arrays: list[Array]) -> int:
    _same_shapes(name, members, [array[:, 0] if array.shape[1] else np.empty(len(array)) for array in arrays])
    return len(arrays[0])


def _same_types(name: str, members: list[Present], arrays: list[Array]) -> None:
    for member, array in zip(members, arrays, strict=True):
        if array.dtype != arrays[0].dtype:
            msg = f"{name!r} is {arrays[0].dtype} in member {members[0].place} and {array.dtype} in {member.place}"
            raise InvalidRequest(msg)


def _concatenated(what: str, name: str, members: list[Present], arrays: list[Array], axis: int) -> Array:
    if any((array.dtype == object) != (arrays[0].dtype == object) for array in arrays):
        raise InvalidRequest(f"{what}: {name!r} is BYTES in some members and numbers in others")
    try:
        return np.concatenate(arrays, axis=axis)
    except ValueError as exc:
        shapes = ", ".join(
            f"{list(array.shape)} in {member.place}" for member, array in zip(members, arrays, strict=True)
        )
        raise InvalidRequest(f"{what}: {name!r} does not fit together along {axis}: {shapes}") from exc


def _mean_type(arrays: list[Array]) -> np.dtype[Any]:
    if all(array.dtype.kind == "f" for array in arrays):
        return np.result_type(*arrays)
    return np.dtype(np.float64)


def _best_column(table: Array) -> Array:
    """The column of each row's largest number, the first of equals; NO_LABEL where there is none."""
    if not table.shape[1]:
        return np.full(len(table), NO_LABEL, dtype=np.int64)
    known = ~np.isnan(table)
    largest = np.where(known, table, -np.inf).max(axis=1)
    best = known & (table == largest[:, None])
    return np.where(known.any(axis=1), best.argmax(axis=1), NO_LABEL).astype(np.int64)


def _at(table: Array, column: Array) -> Array:
    """The element of each row in that column; NaN where the column is NO_LABEL."""
    values = np.full(len(table), np.nan, dtype=table.dtype)
    rows = np.flatnonzero(column != NO_LABEL)
    values[rows] = table[rows, column[rows]]
    return values


def _without_repeats(part: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    """Only the first entry of each (row, label)."""
    row, label, weight = part
    if not len(row):
        return part
    classes, code = np.unique(label, return_inverse=True)
    first = np.sort(np.unique(row * len(classes) + code.reshape(-1), return_index=True)[1])
    return row[first], label[first], weight[first]


def _ranked(row: Array, label: Array, weight: Array) -> list[tuple[Array, Array, Array]]:
    """Weights summed for each (row, label): rows ascending, in each the largest sum first, then the lowest label.

    At most one element, none when nothing was cast. Memory follows what was cast, not rows × labels.
    """
    if not len(row):
        return []
    classes, code = np.unique(label, return_inverse=True)
    pairs, pair = np.unique(row * len(classes) + code.reshape(-1), return_inverse=True)
    sums = np.bincount(pair.reshape(-1), weights=weight)
    rows, codes = np.divmod(pairs, len(classes))
    order = np.lexsort((codes, -sums, rows))
    return [(rows[order], classes[codes[order]], sums[order])]
