from shared.counters import Member
from shared.engine import DenoiseEngine
from shared.engine.forward_log import ForwardLog
from tests.rendering import arguments

ONE = Member(request=1, priority="online", rows=2, step=1, num_steps=4)


def test_padding_is_that_of_each_forward_and_few_are_kept() -> None:
    log = ForwardLog()
    for total in (3, 3, 5):
        log.add(64 * 64, total, [ONE])
    assert [each.padding_rows for each in log.latest()] == [3, 0, 2]
    for _ in range(100):
        log.add(64 * 64, 5, [ONE])
    assert [each.number for each in log.latest()] == [*range(56, 104)]


def test_an_engine_tells_who_was_in_its_forwards(engine: DenoiseEngine) -> None:
    seen = []
    kwargs = arguments(0, num_inference_steps=3)
    engine.submit(**kwargs, on_step=lambda _: seen.append(engine.forwards().in_flight)).result()
    forwards = engine.forwards()
    steps = [(each.step, each.num_steps) for forward in forwards.latest for each in forward.members]
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert [[each.request for each in members] for members in seen] == [[1]] * 3
    assert forwards.in_flight == ()
    assert forwards.counters.online == engine.counters().online
