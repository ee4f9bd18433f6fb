"""What the ingress makes of what its generators do: a handle whose calls end as they are told."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError

from serving.dispatch import Dispatcher
from shared.counters import EngineCounters, Priority
from shared.errors import (
    DeadlineExceeded,
    EngineDead,
    GeneratorLost,
    NotReady,
    Overloaded,
    RenderFailed,
    TooBusy,
)
from shared.request import Encoding, GeneratedImage
from tests.bulk import REQUEST, PlainRenderer

NEVER = "never"
UNAVAILABLE = DeploymentUnavailableError(DeploymentID(name="Generator"))


class Answers:
    """A stream of one value, or what is raised instead."""

    def __init__(self, end: object) -> None:
        self._ends = [end]
        self.is_cancelled = False

    def __aiter__(self) -> "Answers":
        return self

    async def __anext__(self) -> object:
        if not self._ends:
            raise StopAsyncIteration
        end = self._ends.pop()
        if isinstance(end, Exception):
            raise end
        if end == NEVER:
            await asyncio.Event().wait()
        return end

    def cancel(self) -> None:
        self.is_cancelled = True


class Handle:
    """Of a deployment. Whatever is called first ends as the first of `ends`, and so on."""

    def __init__(self, *ends: object) -> None:
        self._ends = list(ends)
        self.calls: list[tuple[Any, ...]] = []
        self.answers: list[Answers] = []

    def options(self, *, stream: bool) -> "Handle":
        assert stream
        return self

    @property
    def generate(self) -> "Handle":
        return self

    counters = check_alive = generate

    def remote(self, *arguments: Any) -> Answers:
        self.calls.append(arguments)
        self.answers.append(Answers(self._ends.pop(0)))
        return self.answers[-1]


def render(handle: Handle, priority: Priority = Priority.ONLINE, timeout_s: float = 60) -> object:
    dispatcher = Dispatcher(handle)  # type: ignore[arg-type]
    return asyncio.run(
        dispatcher.render(REQUEST, Encoding(), timeout_s=timeout_s, priority=priority)
    )


@pytest.fixture(scope="module")
def image() -> GeneratedImage:
    return asyncio.run(PlainRenderer().render(REQUEST))


def test_what_a_lost_generator_had_is_asked_of_the_next_as_it_was(image: GeneratedImage) -> None:
    handle = Handle(RayActorError(), EngineDead("gone"), RayActorError(), RayActorError(), image)
    assert render(handle) == image
    assert [call[0] for call in handle.calls] == [REQUEST] * 5
    assert all(answers.is_cancelled for answers in handle.answers)


@pytest.mark.parametrize(("priority", "tries"), [(Priority.ONLINE, 5), (Priority.BULK, 1)])
def test_so_many_generators_may_die_of_a_request(priority: Priority, tries: int) -> None:
    handle = Handle(*[RayActorError()] * 9)
    with pytest.raises(GeneratorLost):
        render(handle, priority)
    assert len(handle.calls) == tries


def test_a_request_s_own_failure_is_not_tried_again() -> None:
    handle = Handle(RenderFailed("nan"))
    with pytest.raises(RenderFailed, match="nan"):
        render(handle)


def test_one_that_has_too_little_time_closes_the_door_to_nobody(image: GeneratedImage) -> None:
    handle = Handle(TooBusy("too little time"), image)

    async def ask_twice() -> GeneratedImage:
        dispatcher = Dispatcher(handle)  # type: ignore[arg-type]
        with pytest.raises(Overloaded):
            await dispatcher.render(REQUEST, Encoding(), timeout_s=1)
        return await dispatcher.render(REQUEST, Encoding(), timeout_s=60)

    assert asyncio.run(ask_twice()) == image


def test_a_deadline_is_kept_where_no_generator_answers() -> None:
    handle = Handle(NEVER)
    with pytest.raises(DeadlineExceeded):
        render(handle, timeout_s=0.05)
    assert handle.answers[0].is_cancelled


@pytest.mark.parametrize("end", [RayActorError(), EngineDead("gone"), UNAVAILABLE])
@pytest.mark.parametrize("ask", [Dispatcher.counters, Dispatcher.check_ready])
def test_where_nobody_is_to_ask_it_says_so(ask: Callable[..., Any], end: Exception) -> None:
    with pytest.raises(NotReady, match="no generator answers"):
        asyncio.run(ask(Dispatcher(Handle(end))))  # type: ignore[arg-type]


def test_a_picture_too_is_told_that_there_is_nobody() -> None:
    with pytest.raises(NotReady):
        render(Handle(UNAVAILABLE))


def test_a_generator_that_does_not_answer_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.dispatch._READY_WITHIN_S", 0.05)
    with pytest.raises(NotReady, match="no generator answered within"):
        asyncio.run(Dispatcher(Handle(NEVER)).check_ready())  # type: ignore[arg-type]


def test_what_it_answers_is_given_on() -> None:
    counters = EngineCounters(num_decodes=7)
    dispatcher = Dispatcher(Handle(counters))  # type: ignore[arg-type]
    assert asyncio.run(dispatcher.counters()) == counters
