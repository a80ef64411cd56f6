"""The registry: which model versions exist, which should run, which answers by default.

It outlives every pool and holds specs as JSON, written by operators through the command line and read by everyone. A
counter, the revision, rises with each real change, so that a reader polls one number and reads again only when it has
moved. A change also appears in the pool's event stream, which wakes the scheduler. What an operator sets by hand for a
deployment (`scale`) is kept beside it, in the pool.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, TypeVar

from msgspec import Struct
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from contracts import keys
from contracts.adapters.redis import RedisDoor, pairs, script
from contracts.errors import TransportError
from contracts.names import ModelVersion, check_model_name, check_name
from contracts.pool import Demand
from contracts.specs import DeploymentSpec, Knobs, ModelSpec, RouteSpec

_M = TypeVar("_M", bound=BaseModel)


class _RawRegistry(Struct, array_like=True):
    revision: str
    models: list[str]
    deployments: list[str]
    routes: list[str]
    pipelines: list[str]


class RegisteredModel(BaseModel):
    """A model version and where its artefacts are: a folder or URL, and the digest of what was registered."""

    model_config = ConfigDict(frozen=True)

    spec: ModelSpec
    uri: str
    digest: str = ""

    @property
    def key(self) -> ModelVersion:
        """Name and version."""
        return self.spec.key


class RegisteredPipeline(BaseModel):
    """A pipeline's version, and how many partitions its joins topic has for ever: a job's parts meet in one of them."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: int
    spec: dict[str, JsonValue]
    joins: Annotated[int, Field(ge=1)]

    @property
    def is_fused(self) -> bool:
        """Whether its jobs run in memory, in workers that hold all of its models."""
        return bool(self.spec.get("fused", False))

    @property
    def key(self) -> ModelVersion:
        """Name and version."""
        return ModelVersion(self.name, self.version)


class RegistryState(Struct, frozen=True, kw_only=True):
    """The registry at one revision."""

    revision: int
    models: dict[ModelVersion, RegisteredModel]
    deployments: dict[ModelVersion, DeploymentSpec]
    routes: dict[str, RouteSpec]
    pipelines: dict[ModelVersion, RegisteredPipeline] = {}
    """Each has a deployment of the same name, too."""

    @property
    def served(self) -> dict[ModelVersion, DeploymentSpec]:
        """Every model version that is served, with its deployment."""
        return {key: deployment for deployment in self.deployments.values() for key in deployment.keys}


class Registry:
    """Models, deployments and routes under one prefix; manual demand in one pool."""

    def __init__(self, redis: RedisDoor, pool: str = "default") -> None:
        self._redis = redis
        self._root = keys.registry(redis.prefix)
        self._pool = check_name(pool, "pool name")

    async def revision(self) -> int:
        """Rises with each change."""
        return int(await self._redis.command("GET", f"{self._root}:rev") or 0)

    async def snapshot(self) -> RegistryState:
        """Everything at one revision, in one round trip."""
        raw = await self._redis.call_packed(script("registry_snapshot"), [self._root], [], _RawRegistry)
        return RegistryState(
            revision=int(raw.revision),
            models={
                ModelVersion.parse(name): _parse(RegisteredModel, text) for name, text in pairs(raw.models).items()
            },
            deployments={
                ModelVersion.parse(name): _parse(DeploymentSpec, text) for name, text in pairs(raw.deployments).items()
            },
            routes={name: _parse(RouteSpec, text) for name, text in pairs(raw.routes).items()},
            pipelines={
                ModelVersion.parse(name): _parse(RegisteredPipeline, text)
                for name, text in pairs(raw.pipelines).items()
            },
        )

    async def put_models(self, models: Iterable[RegisteredModel]) -> bool:
        """Register model versions; False when all were registered like this already."""
        return await self._change("models", {str(model.key): model.model_dump_json() for model in models})

    async def get_model(self, key: ModelVersion) -> RegisteredModel | None:
        """One model version, None when it is not registered."""
        text = await self._redis.command("HGET", f"{self._root}:models", str(key))
        return None if text is None else _parse(RegisteredModel, text)

    async def models(self) -> dict[ModelVersion, RegisteredModel]:
        """All model versions."""
        return (await self.snapshot()).models

    async def put_knobs(self, key: ModelVersion, knobs: Knobs) -> bool:
        """Set a model version's batching by hand; empty knobs give it back to its spec. False when nothing changed."""
        text = knobs.model_dump_json(exclude_none=True)
        return await self._change("knobs", {str(key): "" if text == "{}" else text})

    async def get_knobs(self, key: ModelVersion) -> Knobs:
        """What was set by hand for a model version."""
        text = await self._redis.command("HGET", f"{self._root}:knobs", str(key))
        return Knobs() if text is None else _parse(Knobs, text)

    async def put_pipeline(self, pipeline: RegisteredPipeline) -> bool:
        """Register a pipeline's version; False when it was registered like this already."""
        return await self._change("pipelines", {str(pipeline.key): pipeline.model_dump_json()})

    async def get_pipeline(self, key: ModelVersion) -> RegisteredPipeline | None:
        """One pipeline's version, None when it is not registered."""
        text = await self._redis.command("HGET", f"{self._root}:pipelines", str(key))
        return None if text is None else _parse(RegisteredPipeline, text)

    async def delete_pipeline(self, key: ModelVersion) -> bool:
        """Forget a pipeline's version; False when it was not there."""
        return await self._change("pipelines", {str(key): ""})

    async def ceilings(self, key: ModelVersion) -> dict[str, int]:
        """Rows that workers found their memory good for, by lease; those of leases that ended may be among them."""
        found = await self._redis.command("HGETALL", keys.ceilings(self._redis.prefix, self._pool, key))
        return {lease: int(rows) for lease, rows in pairs(found).items()}

    async def put_deployment(self, spec: DeploymentSpec) -> bool:
        """Deploy a model version or change how; False when nothing changed."""
        return await self._change("deployments", {str(spec.key): spec.model_dump_json()})

    async def delete_deployment(self, key: ModelVersion) -> bool:
        """Stop serving a model version; False when it was not deployed."""
        return await self._change("deployments", {str(key): ""})

    async def deployments(self) -> dict[ModelVersion, DeploymentSpec]:
        """All deployments."""
        return (await self.snapshot()).deployments

    async def put_route(self, model: str, spec: RouteSpec) -> bool:
        """Say which version of a model answers by default; False when nothing changed."""
        return await self._change("routes", {check_model_name(model): spec.model_dump_json()})

    async def delete_route(self, model: str) -> bool:
        """Remove a model's route; False when there was none."""
        return await self._change("routes", {model: ""})

    async def routes(self) -> dict[str, RouteSpec]:
        """All routes by model."""
        return (await self.snapshot()).routes

    async def set_manual(self, deployment: ModelVersion, workers: int | None, reason: str = "") -> None:
        """Fix the number of a deployment's workers by hand; None gives it back to its spec."""
        root = keys.pool(self._redis.prefix, self._pool)
        count = "" if workers is None else workers
        args = [str(deployment), f"{deployment.model}.{deployment.version}", count, reason]
        await self._redis.call(script("demand_set"), [root], args)

    async def demand(self) -> dict[ModelVersion, Demand]:
        """What was set by hand, by deployment."""
        root = keys.pool(self._redis.prefix, self._pool)
        raw = await self._redis.call_packed(script("demand_all"), [root], [], list[tuple[str, list[str]]])
        return {ModelVersion.parse(name): _demand(pairs(flat)) for name, flat in raw}

    async def _change(self, table: str, entries: Mapping[str, str]) -> bool:
        flat = [part for entry in entries.items() for part in entry]
        stream = keys.events(self._redis.prefix, self._pool)
        _, changed = await self._redis.call(script("registry_change"), [self._root, stream], [table, *flat])
        return int(changed) > 0


def _parse(kind: type[_M], text: str) -> _M:
    try:
        return kind.model_validate_json(text)
    except ValidationError as exc:
        message = f"the registry holds a {kind.__name__} that this version cannot read: {exc}"
        raise TransportError(message) from exc


def _demand(known: Mapping[str, str]) -> Demand:
    return Demand(manual=int(known["manual"]), reason=known["reason"], since_unix_ms=int(known["since"]))
