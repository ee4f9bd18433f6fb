"""Times of a device that is behind the thread which launches its work."""

import time

import pytest
import torch

from shared.engine.device_timer import DeviceTimer


class Device:
    """Does in its own time what it is told; an event is a place in its line of work."""

    def __init__(self) -> None:
        self.launched_ms = 0.0
        self.done_ms = 0.0

    def event(self) -> "Event":
        return Event(self)


class Event:
    def __init__(self, device: Device) -> None:
        self._device = device

    def record(self) -> None:
        self._at_ms = self._device.launched_ms

    def query(self) -> bool:
        return self._device.done_ms >= self._at_ms

    def synchronize(self) -> None:
        self._device.done_ms = max(self._device.done_ms, self._at_ms)

    def elapsed_time(self, end: "Event") -> float:
        assert self.query()
        assert end.query()
        return end._at_ms - self._at_ms


def launch(timer: DeviceTimer[str], device: Device, what: str, ms: float) -> None:
    with timer.timing(what):
        device.launched_ms += ms


def test_what_the_device_has_not_done_yet_has_no_time() -> None:
    device = Device()
    timer = DeviceTimer[str](torch.device("cuda"), device.event)
    launch(timer, device, "first", 300)
    launch(timer, device, "second", 500)
    assert list(timer.take_done()) == []
    device.done_ms = 400
    assert list(timer.take_done()) == [("first", 0.3)]
    timer.wait()
    assert list(timer.take_done()) == [("second", 0.5)]
    timer.wait()


def test_what_failed_has_no_time() -> None:
    device = Device()
    timer = DeviceTimer[str](torch.device("cuda"), device.event)
    with pytest.raises(ValueError, match="no"), timer.timing("failed"):
        raise ValueError("no")
    launch(timer, device, "next", 100)
    device.done_ms = 100
    assert list(timer.take_done()) == [("next", 0.1)]


def test_a_processor_does_at_once_what_it_is_told() -> None:
    timer = DeviceTimer[str](torch.device("cpu"))
    with timer.timing("sleep"):
        time.sleep(0.05)
    ((what, seconds),) = timer.take_done()
    assert what == "sleep"
    assert 0.05 <= seconds < 5
