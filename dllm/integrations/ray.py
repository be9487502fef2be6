"""`dllm serve` on Ray Serve: replicas of one model, an engine each.

    from ray import serve
    from dllm.integrations.ray import application

    serve.run(application("tiny", scheduler="threshold:0.9", num_replicas=2))

or `serve run dllm.integrations.ray:app model=tiny num_replicas=2`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# All of them optional packages, of the extra `ray`.
try:
    from pydantic import BaseModel, ConfigDict, Field
    from ray import serve
    from ray.serve import Application
    from ray.serve.metrics import Gauge
    from starlette.types import Receive, Scope, Send
except ImportError as error:
    raise ImportError(
        "dllm.integrations.ray needs Ray Serve and what a server needs: pip install 'dllm[ray]', or"
        " in a checkout pip install -e '.[ray]'"
    ) from error

from dllm.compatible import check
from dllm.models.loading import load
from dllm.registry import nearest
from dllm.serve.app import app_of
from dllm.serve.engine import Engine
from dllm.serve.measured import Measured
from dllm.serve.service import Access, Limits, Service
from dllm.settings import resolve

__all__ = ["Arguments", "Replica", "app", "application"]

# Ray gives up on a replica that does not end this many seconds after its engine should have.
_MORE_GRACE = 5.0


class Arguments(BaseModel):
    """A model, the settings that requests start from, and how many replicas answer them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "tiny"  # or a checkpoint folder that each node has, or a hub id
    name: str | None = None  # of the model to clients; None: the last part of `model`
    num_replicas: int = Field(1, ge=1, le=2**16)
    # Ray's AutoscalingConfig, such as {"min_replicas": 1, "max_replicas": 8}; instead of a number
    autoscaling: dict[str, Any] | None = None
    ray_actor_options: dict[str, Any] | None = None  # of a replica, such as {"num_gpus": 1}
    scheduler: str | dict[str, Any] | None = None
    cache: str | dict[str, Any] | None = None
    verifier: str | dict[str, Any] | None = None
    max_new_tokens: int | None = None
    block_length: int | None = None
    settings: dict[str, Any] = {}  # others of dllm.generate
    dtype: str | None = None
    device: str | None = None
    speed: str | None = None
    revision: str | None = None
    batch_size: int = Field(16, ge=1, le=2**12)  # rows that a replica decodes at a time
    max_waiting: int = Field(
        256, ge=1, le=2**20
    )  # requests that wait in Ray, and answers in a replica
    max_tokens: int = Field(4096, ge=1, le=2**20)  # of an answer
    timeout: float = Field(600.0, ge=0, le=1e6)  # seconds after which an answer comes too late
    grace: float = Field(60.0, ge=0, le=1e6)  # seconds for running answers where a replica ends
    api_key_file: str | None = None  # on each node
    health_check_period: float = Field(5.0, gt=0, le=1e6)  # seconds

    @property
    def max_ongoing_requests(self) -> int:
        """Requests that a replica has at a time: those decoded, and as many that are next.

        What else waits, waits in Ray, for whichever replica has room first.
        """
        return 2 * self.batch_size

    def decoding(self) -> dict[str, Any]:
        """Returns the settings that were given."""
        names = ("scheduler", "cache", "verifier", "max_new_tokens", "block_length")
        given = {name: getattr(self, name) for name in names}
        return {**{k: v for k, v in given.items() if v is not None}, **self.settings}


def application(model: str = "tiny", **options: Any) -> Application:
    """Returns a Ray Serve application of a model; options are the fields of `Arguments`.

    Raises TypeError for an option that there is not, ValueError for one that cannot be.
    """
    known = set(Arguments.model_fields) - {"model"}
    for name in options.keys() - known:
        see = f"there are {', '.join(sorted(known))}"
        raise TypeError(f"application() has no option {name!r}: {nearest(name, known, see)}")
    asked = Arguments(model=model, **options)
    if asked.autoscaling is not None and "num_replicas" in options:
        raise ValueError(
            f"num_replicas={asked.num_replicas} and autoscaling={asked.autoscaling} both say how "
            "many replicas there are: leave one of them out"
        )
    scaled = {"num_replicas": asked.num_replicas}
    deployment = serve.deployment(
        name="dllm",
        max_ongoing_requests=asked.max_ongoing_requests,
        max_queued_requests=asked.max_waiting,
        ray_actor_options=asked.ray_actor_options or {},
        graceful_shutdown_timeout_s=asked.grace + _MORE_GRACE,
        health_check_period_s=asked.health_check_period,
        **({"autoscaling_config": asked.autoscaling} if asked.autoscaling else scaled),
    )
    return deployment(serve.ingress(_Addresses())(Replica)).bind(asked)


def app(arguments: dict[str, Any]) -> Application:
    """Returns the application of `serve run dllm.integrations.ray:app name=value ...`."""
    return application(**arguments)


class Replica:
    """A model of its own, the thread that decodes, and the addresses of `dllm serve`."""

    service: Service | None = None  # None: it never began

    def __init__(self, arguments: Arguments) -> None:
        replica = serve.get_replica_context().replica_id.unique_id
        service = service_of(arguments, {"replica": replica})
        self.asgi = app_of(service)
        service.engine.start()
        self.service, self.grace, self._told = service, arguments.grace, _Told()

    def check_health(self) -> None:
        """Raises RuntimeError where nothing is decoded any more: Ray replaces the replica then."""
        if self.service is None or not self.service.engine.alive:
            raise RuntimeError("the thread that decodes has ended: this replica answers nothing")
        self._told.tell(self.service)  # as often as Ray asks

    def __del__(self) -> None:
        # Ray calls it once running requests have their answers, or its own patience is at its end.
        if self.service is not None:
            self.service.engine.close(self.grace)


class _Told:
    """A replica's figures among Ray's own, which adds its name to them."""

    def __init__(self) -> None:
        self._gauges: dict[str, Gauge] = {}

    def tell(self, service: Service) -> None:
        """Sets each figure of `/metrics` as a gauge of the same name."""
        for (name, labels), value in service.measured.figures(service.engine).items():
            if name not in self._gauges:
                keys: Any = tuple(key for key, _ in labels)  # declared as a tuple of one
                self._gauges[name] = Gauge(name, description=name, tag_keys=keys)
            self._gauges[name].set(value, tags=dict(labels))


class _Addresses:
    """The addresses of the replica that this runs in; Ray takes them before there is one."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":  # the replica begins and ends by itself
            while (told := (await receive())["type"]) != "lifespan.shutdown":
                await send({"type": f"{told}.complete"})
            await send({"type": f"{told}.complete"})
            return
        replica: Any = serve.get_replica_context().servable_object
        await replica.asgi(scope, receive, send)


def service_of(arguments: Arguments, labels: Mapping[str, str]) -> Service:
    """Returns a replica's model and engine; `labels` name its figures."""
    model = load(
        arguments.model,
        dtype=arguments.dtype,
        device=arguments.device,
        speed=arguments.speed,
        revision=arguments.revision,
    )
    if model.tokenizer is None:
        raise ValueError(f"{arguments.model!r} has no tokenizer, and requests are text")
    settings = resolve(model.defaults, None, arguments.decoding())
    check(model, settings)
    key = None
    if arguments.api_key_file is not None:
        key = Path(arguments.api_key_file).read_text(encoding="utf-8").strip()
        if not key:
            raise ValueError(
                f"api_key_file={arguments.api_key_file!r} is empty: write the key in it"
            )
    return Service(
        model=model,
        name=arguments.name or Path(arguments.model).name,
        engine=Engine(model, max_rows=arguments.batch_size, max_waiting=arguments.max_waiting),
        settings=settings,
        limits=Limits(max_tokens=arguments.max_tokens, answer_seconds=arguments.timeout),
        access=Access(key),
        measured=Measured(labels),
    )
