"""Pictures that a running service renders, at bulk priority, as fast as it takes them."""

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Iterator

from batch.flow import Window
from batch.service import Service, ServiceUnusable, Unreachable
from shared.config import EngineConfig
from shared.errors import DeadlineExceeded, GeneratorLost, ImageBlocked, Overloaded, RenderFailed
from shared.model_profile import ModelProfile
from shared.request import CanonicalRequest, GeneratedImage

# Under way at once, at most; each is an open call.
MAX_UNDER_WAY = 256
# A picture that nobody lived to render: the first time in company, then alone. One that was not
# rendered in time is no danger to the others, and waits among them.
_MAX_TRIES = 3
# So long a service may be gone, which another deployment of it or a lost node takes.
_PATIENCE_S = 600.0
_LONGEST_PAUSE_S = 15.0


class ServiceRenderer:
    """An ImageRenderer. `profile` is that of the service's model, as the run was planned."""

    def __init__(self, service: Service, profile: ModelProfile) -> None:
        self.profile = profile
        self._service = service
        self._window = Window(EngineConfig().max_queued_bulk, MAX_UNDER_WAY)
        self._gone_since: float | None = None

    async def render(self, request: CanonicalRequest) -> GeneratedImage:
        """Raises what the request is the reason of, and ServiceUnusable."""
        pauses, failures = _pauses(), Counter[type]()
        while True:
            async with self._window.alone() if failures[GeneratorLost] else self._window.place():
                try:
                    image = await self._service.render(request)
                except Overloaded as refusal:
                    self._heard()
                    self._window.refused()
                    pause_s = refusal.retry_after_s
                except Unreachable as error:
                    self._check_patience(error)
                    self._window.begin()
                    pause_s = next(pauses)
                except (ImageBlocked, RenderFailed):
                    self._heard()
                    raise
                except (GeneratorLost, DeadlineExceeded) as error:
                    self._heard()
                    failures[type(error)] += 1
                    if failures[type(error)] == _MAX_TRIES:
                        raise
                    pause_s = next(pauses)
                else:
                    self._heard()
                    self._window.came()
                    self._check_weights(request, image)
                    return image
            await asyncio.sleep(pause_s)

    def _heard(self) -> None:
        self._gone_since = None

    def _check_patience(self, error: Unreachable) -> None:
        now = time.monotonic()
        if self._gone_since is None:
            self._gone_since = now
        if now - self._gone_since > _PATIENCE_S:
            raise ServiceUnusable(f"it gave no answer for {_PATIENCE_S:.0f} s: {error}")

    def _check_weights(self, request: CanonicalRequest, image: GeneratedImage) -> None:
        there, planned = image.provenance.model_fingerprint, self.profile.fingerprint_for(request)
        if there != planned:
            raise ServiceUnusable(f"it serves other weights now, {there} instead of {planned}")


def _pauses() -> Iterator[float]:
    """Twice as long each time, so that those who lost a service do not come back all at once."""
    for i in itertools.count():
        yield random.uniform(0.5, 1) * min(2.0**i, _LONGEST_PAUSE_S)
