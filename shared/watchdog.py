"""Ends a process that holds an engine once nothing is rendered there any more."""

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from shared.errors import EngineDead

logger = logging.getLogger(__name__)

_EVERY_S = 10.0


def start_watchdog(check_alive: Callable[[], None]) -> None:
    """Ask now and then, for good; where `check_alive` raises EngineDead, the process ends itself.

    Whoever asks from outside does not ask a replica that is to go, and would first give it time to
    finish.
    """
    threading.Thread(target=_watch, args=(check_alive,), name="watchdog", daemon=True).start()


def end_process() -> NoReturn:
    """To be called where EngineDead was caught, in a process of Ray's: it starts another one.

    Nothing more will come of this one; by its death all who wait for it are told at once, and go
    elsewhere.
    """
    logger.exception("the engine is dead: its process ends itself")
    os._exit(1)


def _watch(check_alive: Callable[[], None]) -> None:
    while True:
        time.sleep(_EVERY_S)
        try:
            check_alive()
        except EngineDead:
            end_process()
