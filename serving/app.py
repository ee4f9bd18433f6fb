"""The Serve application, from its arguments.

serve run --working-dir . serving.app:stable_diffusion_app                       all defaults
serve run --working-dir . serving.app:build_app model=/path/to/model num_cpus=8  with arguments
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Self

import ray
from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from ray.serve import Application, Deployment
from ray.serve.config import RequestRouterConfig

from serving.auth import token_hash, tokens_from_environment
from serving.dispatch import MAX_BULK
from serving.door import HttpConfig
from serving.generator import Generator
from serving.ingress import Ingress
from serving.preflight import check_model
from serving.routing import LeastBurdenRouter
from shared.config import EngineConfig, ModelConfig, Settings
from shared.cpu_workers import CPU_WORKER
from shared.model_names import model_id

# Calls of a generator that are short: its counters, and refusals.
_SPARE = 16
# Of a model beside the default one: no generator while nobody asks for it.
_WHILE_ASKED_FOR = {"min_replicas": 0, "max_replicas": 1, "downscale_delay_s": 600}


def _with_tokens(http: HttpConfig) -> HttpConfig:
    """Those of the environment, where it does not say itself which there are."""
    if "token_hashes" in http.model_fields_set:
        return http
    hashes = tuple(token_hash(token) for token in tokens_from_environment(os.environ))
    return http.model_copy(update={"token_hashes": hashes})


class ServiceArgs(Settings):
    """The application's arguments, as YAML `args:` or `key=value`; an unknown one is refused.

    `model` is the default one, `other_models` are those that a request can name as well. Each has
    a deployment of its own: Generator, and Generator-NAME of the others. The default model has
    `num_generators` replicas, unless `deployments:` of a Serve config has a number for it.

    `num_cpus` and `num_gpus` are what one generator replica takes; without a GPU it takes every CPU
    of a node (its part of them, where there are several), since that is the number of threads that
    torch gets, but only one where there is no cluster yet (`serve run`) when this is built.
    `max_queued_requests` may wait in an ingress for a generator with room; the queue proper is the
    engine's (`max_queued`). `http.token_hashes` are by default those of the tokens in API_TOKEN and
    API_TOKEN_FILE. Bulk requests count for autoscaling only if `bulk_may_scale`.
    """

    model: ModelConfig = ModelConfig()
    other_models: tuple[ModelConfig, ...] = ()
    engine: EngineConfig = EngineConfig()
    num_generators: PositiveInt = 1
    num_cpus: PositiveFloat | None = None
    num_gpus: NonNegativeFloat = 0
    max_queued_requests: PositiveInt = 128
    bulk_may_scale: bool = False
    http: Annotated[HttpConfig, AfterValidator(_with_tokens)] = Field(
        default=HttpConfig(), validate_default=True
    )

    @model_validator(mode="after")
    def _have_names_of_their_own(self) -> Self:
        for name, number in same_names(self.models).items():
            raise ValueError(f"other_models: {number} models have the name {name!r}")
        return self

    @property
    def models(self) -> tuple[ModelConfig, ...]:
        return (self.model, *self.other_models)

    @property
    def most_generators(self) -> int:
        """That run at once, of all models."""
        return self.num_generators + len(self.other_models)


def same_names(models: Iterable[ModelConfig]) -> dict[str, int]:
    """The names that several models have, and how many have each."""
    names = Counter(map(model_id, models))
    return {name: number for name, number in names.items() if number > 1}


def build_app(args: ServiceArgs) -> Application:
    """An ingress in front of generators; `deployments:` in a Serve config scales each of them.

    Raises ModelUnavailable where no node finds the checkpoint; what is served by then goes on.
    """
    if ray.is_initialized():
        for model in args.models:
            check_model(model, _num_cpus(args), args.num_gpus)
    return _bound(args)


def _bound(args: ServiceArgs) -> Application:
    # A replica that is to go finishes what it has: nothing there takes longer than this.
    patience = {"graceful_shutdown_timeout_s": args.http.timeout_s}
    engine = args.engine
    max_renderings = 2 * engine.max_in_flight + engine.max_queued + engine.max_queued_bulk
    generator = Generator.options(  # type: ignore[attr-defined]  # Serve's decorator is untyped
        **patience,
        # More than the engine takes: it knows best whom to refuse, and is still to be asked how
        # it is when it is full.
        max_ongoing_requests=max_renderings + _SPARE,
        # Bulk requests, which are counted before, take nobody's place.
        max_queued_requests=args.max_queued_requests + MAX_BULK,
        request_router_config=RequestRouterConfig(
            request_router_class=LeastBurdenRouter,
            request_router_kwargs={"max_renderings": max_renderings},
        ),
        ray_actor_options={
            "num_cpus": _num_cpus(args),
            "num_gpus": args.num_gpus,
            "runtime_env": {"env_vars": CPU_WORKER},
        },
    )

    def bound(deployment: Deployment, model: ModelConfig) -> Application:
        return deployment.bind(model, args.engine, bulk_may_scale=args.bulk_may_scale)

    default = generator
    if args.num_generators > 1:  # one is Serve's default, beside which it may be told to autoscale
        default = generator.options(num_replicas=args.num_generators)
    generators = {model_id(args.model): bound(default, args.model)}
    for model in args.other_models:
        own = generator.options(name=_deployment(model), autoscaling_config=_WHILE_ASKED_FOR)
        generators[model_id(model)] = bound(own, model)
    ingress = Ingress.options(**patience)  # type: ignore[attr-defined]
    return ingress.bind(generators, args.models, args.engine, args.http)


def _deployment(model: ModelConfig) -> str:
    """Of a model beside the default one; two names that look alike in it stay two."""
    name = model_id(model)
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", name)
    mark = "" if plain == name else "-" + hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"Generator-{plain}{mark}"


def _num_cpus(args: ServiceArgs) -> float:
    if args.num_cpus is not None:
        return args.num_cpus
    if args.num_gpus or not ray.is_initialized():
        return 1
    most = max(float(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["Alive"])
    return most / args.most_generators


stable_diffusion_app = _bound(ServiceArgs())
