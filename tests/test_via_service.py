"""A bulk job's side of a running service: how much it asks for, what it makes of the answers."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.responses import PlainTextResponse

from batch.flow import Window
from batch.service import HttpService, ServiceUnusable, Unreachable, connect
from batch.service_renderer import ServiceRenderer
from serving.auth import token_hash
from serving.door import HttpConfig
from shared.config import EngineConfig, ModelConfig
from shared.counters import Priority
from shared.errors import DeadlineExceeded, GeneratorLost, ImageBlocked, Overloaded, RenderFailed
from shared.model_profile import ServedModel
from shared.renderer import Renderer
from shared.request import CanonicalRequest, GeneratedImage
from tests.bulk import REQUEST, PlainRenderer
from tests.conftest import free_port
from tests.http_server import InProcess, http_server, serving_app


class FakeService:
    """Takes `room` requests at once; before that, each answer that is left in `troubles`."""

    def __init__(self, room: int = 100, troubles: list[Exception] | None = None) -> None:
        self.room = room
        self.troubles = troubles or []
        self.under_way = 0
        self.most = 0
        self.refused = 0
        self.asked = 0
        self.company: list[int] = []  # how many were under way when each was asked for
        self._plain = PlainRenderer()

    async def served(self) -> ServedModel:
        return ServedModel.configured(self._plain.profile, ModelConfig(), EngineConfig())

    async def render(self, request: CanonicalRequest) -> GeneratedImage:
        self.asked += 1
        self.company.append(self.under_way)
        if self.under_way >= self.room:
            self.refused += 1
            raise Overloaded(0.01)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(0.01)
            if self.troubles:
                raise self.troubles.pop(0)
            return await self._plain.render(request)
        finally:
            self.under_way -= 1


def render(service: FakeService, number: int) -> list[GeneratedImage | BaseException]:
    """So many pictures at once, or what was raised instead."""

    async def render_all() -> list[GeneratedImage | BaseException]:
        renderer = ServiceRenderer(service, (await service.served()).profile)
        calls = (renderer.render(REQUEST) for _ in range(number))
        return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(render_all())


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batch.service_renderer._LONGEST_PAUSE_S", 0.05)


def test_a_job_asks_for_as_much_as_a_service_takes_and_seldom_for_more() -> None:
    service = FakeService(room=40)
    images = render(service, 1000)
    assert all(isinstance(image, GeneratedImage) for image in images)
    assert service.most == 40
    assert service.refused < 100


def test_a_full_service_is_not_pressed() -> None:
    service = FakeService(room=1)
    images = render(service, 50)
    assert all(isinstance(image, GeneratedImage) for image in images)
    assert service.refused < 100


def test_a_service_that_is_gone_for_a_while_loses_nothing() -> None:
    service = FakeService(troubles=[Unreachable("gone")] * 40)
    images = render(service, 60)
    assert all(isinstance(image, GeneratedImage) for image in images)


def test_a_service_that_stays_away_ends_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batch.service_renderer._PATIENCE_S", 0.1)
    (error,) = render(FakeService(troubles=[Unreachable("gone")] * 1000), 1)
    assert isinstance(error, ServiceUnusable)
    assert "gone" in str(error)


def test_patience_begins_when_the_service_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batch.service_renderer._PATIENCE_S", 0)
    (image,) = render(FakeService(troubles=[Unreachable("for a moment")]), 1)
    assert isinstance(image, GeneratedImage)


def test_what_died_with_its_generator_is_rendered_alone_and_given_up_the_third_time() -> None:
    service = FakeService(troubles=[GeneratorLost("lost")] * 16)
    images = render(service, 16)
    assert all(isinstance(image, GeneratedImage) for image in images)
    (error,) = render(FakeService(troubles=[GeneratorLost("lost")] * 3), 1)
    assert isinstance(error, GeneratorLost)


def test_what_was_late_is_asked_for_among_others_and_given_up_the_third_time() -> None:
    service = FakeService(troubles=[DeadlineExceeded("late")] * 16)
    images = render(service, 16)
    assert all(isinstance(image, GeneratedImage) for image in images)
    assert max(service.company[16:]) > 1
    (error,) = render(FakeService(troubles=[DeadlineExceeded("late")] * 3), 1)
    assert isinstance(error, DeadlineExceeded)


def test_a_request_s_own_failure_is_told_at_once() -> None:
    for trouble in (RenderFailed("nan"), ImageBlocked("no")):
        service = FakeService(troubles=[trouble])
        assert render(service, 1) == [trouble]
        assert service.asked == 1


def test_other_weights_than_the_planned_ones_end_the_job() -> None:
    service = FakeService()
    service._plain.profile = service._plain.profile.model_copy(update={"fingerprint": "f" * 32})
    served = asyncio.run(FakeService().served())

    async def render_one() -> GeneratedImage:
        return await ServiceRenderer(service, served.profile).render(REQUEST)

    with pytest.raises(ServiceUnusable, match="other weights"):
        asyncio.run(render_one())


def test_places_are_given_in_the_order_of_asking() -> None:
    async def take_turns() -> list[int]:
        window, order = Window(first=1, most=1), list[int]()

        async def take(number: int) -> None:
            async with window.place():
                order.append(number)
                await asyncio.sleep(0)

        await asyncio.gather(*map(take, range(20)))
        return order

    assert asyncio.run(take_turns()) == list(range(20))


def test_who_is_alone_has_nobody_beside_it() -> None:
    async def watch() -> list[int]:
        window, beside, under_way = Window(first=8, most=8), list[int](), 0

        async def take(place: Callable[[], object], *, is_alone: bool) -> None:
            nonlocal under_way
            async with place():  # type: ignore[attr-defined]
                under_way += 1
                await asyncio.sleep(0.001)
                if is_alone:
                    beside.append(under_way)
                under_way -= 1

        calls = [take(window.alone, is_alone=True) for _ in range(3)]
        calls += [take(window.place, is_alone=False) for _ in range(20)]
        await asyncio.gather(*calls[3:12], *calls[:3], *calls[12:])
        return beside

    assert asyncio.run(watch()) == [1, 1, 1]


# Over HTTP, by a real server.


@pytest.fixture(scope="module")
def rendering() -> Iterator[InProcess]:
    with Renderer(ModelConfig(), EngineConfig(max_in_flight=2)) as each:
        yield InProcess(each)


def served_over_http(host: str, token: str | None = None) -> ServedModel:
    return asyncio.run(HttpService(host, None, token).served())


def test_a_picture_over_http_is_that_of_the_engine_at_bulk_priority(rendering: InProcess) -> None:
    before = rendering.renderer.counters()
    with http_server(rendering) as host:
        image = asyncio.run(HttpService(host, "postcard", None).render(REQUEST))
        assert served_over_http(host).profile == rendering.renderer.profile
    expected = asyncio.run(rendering.renderer.render(REQUEST, priority=Priority.BULK))
    assert image.data == expected.data
    assert image.provenance == expected.provenance
    assert image.timings.num_forwards == expected.timings.num_forwards
    assert image.timings.render_s > 0
    after = rendering.renderer.counters()
    assert after.bulk.num_completed == before.bulk.num_completed + 2
    assert after.online.num_completed == before.online.num_completed


def test_who_may_not_call_is_told_at_once(rendering: InProcess) -> None:
    with http_server(rendering, HttpConfig(token_hashes=(token_hash("secret"),))) as host:
        assert served_over_http(host, "secret").dtype == "auto"
        with pytest.raises(ServiceUnusable, match="token"):
            served_over_http(host, "wrong")
        with pytest.raises(ServiceUnusable, match="'other'"):
            asyncio.run(HttpService(host, "other", "secret").served())


@pytest.mark.parametrize(("retry_after", "seconds"), [({"Retry-After": "7"}, 7.0), ({}, 1.0)])
def test_a_proxy_s_refusal_is_one_too(retry_after: dict[str, str], seconds: float) -> None:
    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("slow down", 429, retry_after)(scope, receive, send)

    with serving_app(refuse) as host, pytest.raises(Overloaded) as refusal:
        served_over_http(host)
    assert refusal.value.retry_after_s == seconds


def test_what_is_no_address_is_told() -> None:
    with pytest.raises(ServiceUnusable, match="http://host:80a is no address"):
        connect("http://host:80a", None, None)


def test_answers_of_others_are_no_answers(rendering: InProcess) -> None:
    with pytest.raises(Unreachable):
        served_over_http(f"http://127.0.0.1:{free_port()}")
    with (
        http_server(rendering) as host,
        pytest.raises(ServiceUnusable, match="is not there"),
    ):
        served_over_http(f"{host}/elsewhere")
