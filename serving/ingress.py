"""The deployment that answers HTTP; requests are checked here, before a generator sees them."""

from collections.abc import Mapping, Sequence

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from serving.dispatch import Dispatcher
from serving.door import HttpConfig, chosen
from serving.http_app import build_http_app
from serving.logs import log_with_serve
from shared.config import EngineConfig, ModelConfig
from shared.counters import Priority
from shared.model_profile import ServedModel
from shared.request import CanonicalRequest, Encoding, GeneratedImage


# Enough that the generators' queue, and not the ingress, decides what is too much. What is over it
# all the same, Serve refuses by itself: in plain text, but with the status that clients know. The
# ingress is quick to refuse others, so there is soon room again.
#
# It stands on the head node, without which there is no service anyway: a request that is under way
# through an ingress would be lost with its node, while one in a generator is tried elsewhere.
@serve.deployment(
    max_ongoing_requests=1000,
    max_queued_requests=1000,
    backpressure_config={"status_code": 429, "retry_after_s": 1},
    ray_actor_options={"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}},
)
@serve.ingress()
class Ingress:
    def __init__(
        self,
        generators: Mapping[str, DeploymentHandle],
        models: Sequence[ModelConfig],
        engine: EngineConfig,
        http: HttpConfig,
    ) -> None:
        """Generators by their models' names, the default first.

        `models` and `engine` are here because what is served is asked once: a change of them
        renews the ingress too.
        """
        log_with_serve()
        self._models = {name: Dispatcher(each) for name, each in generators.items()}
        self._http = http

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve's hook for an application that is built where it runs, from arguments."""
        return build_http_app(self._models, self._http)

    async def served(self, model: str | None = None) -> ServedModel:
        """Of `model` or the default; raises UnknownModel."""
        return await chosen(self._models, model).served()

    async def render_bulk(
        self, request: CanonicalRequest, model: str | None = None
    ) -> GeneratedImage:
        """For a bulk job in this cluster, which has the application's handle."""
        return await chosen(self._models, model).render(
            request, Encoding(), timeout_s=self._http.timeout_s, priority=Priority.BULK
        )
