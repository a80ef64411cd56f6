import pytest

from contracts import keys
from contracts.names import ModelVersion


def test_all_keys_of_a_pool_share_one_hash_tag() -> None:
    assert keys.pool("headrace", "default") == "headrace:{default}"
    assert keys.events("headrace", "default") == "headrace:{default}:ev"
    assert keys.demand("t", "p", ModelVersion("a.b", 2)) == "t:{p}:demand:a.b.2"


def test_other_keys_start_with_the_prefix() -> None:
    assert keys.registry("t") == "t:registry"
    assert keys.inbox("t", "svc") == "t:inbox:{svc}"
    assert keys.cancels("t") == "t:cancels"
    assert keys.idempotency("t", "acme", "order:1") == "t:idem:acme:order:1"


@pytest.mark.parametrize(
    "key",
    [
        "headrace:{default}:tok",
        "headrace:{default}:dev:GPU-1f2e:leases",
        "headrace:{default}:lease:digits-2-a1:parts",
        "headrace:{default}:part:headrace.requests.digits.2:since",
        "headrace:{default}:demand:digits.2",
        "headrace:registry:rev",
    ],
)
def test_a_key_of_the_pool_or_registry_may_live_for_ever(key: str) -> None:
    assert keys.may_lack_ttl(key)


@pytest.mark.parametrize(
    "key",
    [
        "headrace:{default}:ended:digits-2-a1",
        "headrace:inbox:{svc}:3",
        "headrace:cancels",
        "headrace:idem:default:order-1",
        "headrace:idem:default:registry:rev",
        "headrace:{default}:testclock",
        "headrace:{default}:lease:digits-2-a1:other",
        "tok",
    ],
)
def test_any_other_key_without_a_ttl_is_a_leak(key: str) -> None:
    assert not keys.may_lack_ttl(key)
