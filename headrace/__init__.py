"""What users import: `from headrace import InferenceClient, SyncInferenceClient, Tensor, …`.

Lazy re-exports and nothing else, so that the public names outlive any move inside, and so that a service which sends
requests never loads what only a worker needs. The packages behind it have plain names (`contracts`, `producer`,
`workers`), which a user's own folders may have too: then Python would hand us the wrong ones, and the first sign would
be an AttributeError far away. So the import of this facade fails at once and says which folder is in the way.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from contracts.errors import (
        BackendError,
        Cancelled,
        ClientClosed,
        ConfigurationError,
        DeadlineExceeded,
        HeadraceError,
        InternalError,
        InvalidRequest,
        InvalidRows,
        LeaseLost,
        ModelLoadError,
        ModelNotFound,
        Overloaded,
        PayloadLost,
        PoisonRequest,
        RequestError,
        SequenceLost,
        StreamBroken,
        TransportError,
    )
    from contracts.messages import Receipt, Response, Status
    from contracts.tensors import Tensor
    from producer.client import InferenceClient
    from producer.sync import SyncInferenceClient

__version__: Final = "0.1.0"

__all__ = [
    "BackendError",
    "Cancelled",
    "ClientClosed",
    "ConfigurationError",
    "DeadlineExceeded",
    "HeadraceError",
    "InferenceClient",
    "InternalError",
    "InvalidRequest",
    "InvalidRows",
    "LeaseLost",
    "ModelLoadError",
    "ModelNotFound",
    "Overloaded",
    "PayloadLost",
    "PoisonRequest",
    "Receipt",
    "RequestError",
    "Response",
    "SequenceLost",
    "Status",
    "StreamBroken",
    "SyncInferenceClient",
    "Tensor",
    "TransportError",
]

_HOMES: Final = {
    "InferenceClient": "producer.client",
    "SyncInferenceClient": "producer.sync",
    "Tensor": "contracts.tensors",
    "Receipt": "contracts.messages",
    "Response": "contracts.messages",
    "Status": "contracts.messages",
}  # every other name is an error
_NEIGHBOURS: Final = ("contracts", "producer", "workers")


def _check_neighbours() -> None:
    """Raise ImportError unless the packages that Python finds are the ones that were installed beside this one."""
    ours = Path(__file__).resolve().parent.parent
    for name in _NEIGHBOURS:
        spec = importlib.util.find_spec(name)
        places = [spec.origin] if spec and spec.origin else list(spec.submodule_search_locations or ()) if spec else []
        found = [Path(place).resolve() for place in places]
        if any(path.is_relative_to(ours / name) for path in found):
            continue
        if not found:
            msg = f"headrace is incomplete: its package {name!r} is missing from {ours}; reinstall it"
            raise ImportError(msg, name=name)
        hidden = found[0].parent if found[0].name == "__init__.py" else found[0]
        msg = (
            f"{hidden} hides headrace's own package {name!r} at {ours / name}: rename that folder or file, or keep its "
            "parent off the module path (python -P leaves out the working directory; see also PYTHONPATH)"
        )
        raise ImportError(msg, name=name, path=str(hidden))


def __getattr__(name: str) -> Any:
    if name not in __all__:
        msg = f"module 'headrace' has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(importlib.import_module(_HOMES.get(name, "contracts.errors")), name)
    globals()[name] = value  # found without us from now on
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


_check_neighbours()
