"""How the partitions of a topic are divided: by weight, with as few moves as possible.

Largest remainder: everybody gets the whole part of its quota, and what is left goes to the largest fractions. Among
equal fractions those who hold more come first, which is what keeps moves few. Everybody then keeps what it has up to
its number, and the rest changes hands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

_GRAIN = 1e-9  # fractions closer than this are equal: they differ by rounding only


def numbers(total: int, weights: Mapping[str, float], held: Mapping[str, int]) -> dict[str, int]:
    """How many of `total` partitions each lease gets. Weights are positive; their order decides the last ties."""
    scale = total / sum(weights.values()) if weights else 0.0
    quotas = {lease: weight * scale for lease, weight in weights.items()}
    counts = {lease: int(quota + _GRAIN) for lease, quota in quotas.items()}
    left = total - sum(counts.values()) if weights else 0
    by_claim = sorted(quotas, key=lambda lease: (-_grains(quotas[lease] - counts[lease]), -held.get(lease, 0)))
    for lease in by_claim[:left]:
        counts[lease] += 1
    return counts


def _grains(fraction: float) -> int:
    return round(fraction / _GRAIN)


def divide(
    partitions: Sequence[int],
    current: Mapping[int, str],
    weights: Mapping[str, float],
    settled: Iterable[int] = (),
) -> dict[int, str]:
    """Who should have each partition. `current` may name leases without a weight: what they have is given away.

    Whoever must give up something keeps what is `settled`, which would cost a handover, and then the lowest numbers.
    """
    if not weights:
        return {}
    at_home = set(settled)
    held: dict[str, list[int]] = {lease: [] for lease in weights}
    for partition in sorted(partitions, key=lambda p: (p not in at_home, p)):
        lease = current.get(partition)
        if lease in held:
            held[lease].append(partition)
    counts = numbers(len(partitions), weights, {lease: len(have) for lease, have in held.items()})
    result = {p: lease for lease, have in held.items() for p in have[: counts[lease]]}
    free = iter([p for p in partitions if p not in result])
    for lease, count in counts.items():
        for _ in range(count - min(count, len(held[lease]))):
            result[next(free)] = lease
    return result
