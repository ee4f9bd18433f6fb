"""A process whose engine is dead, in a process of its own."""

import subprocess
import sys

from tests.conftest import REPO

CODE = """
import time
from shared import watchdog
from shared.errors import EngineDead

watchdog._EVERY_S = 0.1
began = time.monotonic()

def check_alive():
    if time.monotonic() > began + 0.5:
        raise EngineDead("it hangs")

watchdog.start_watchdog(check_alive)
time.sleep(0.3)
print("alive", flush=True)
time.sleep(60)
"""


def test_a_process_whose_engine_is_dead_ends_itself() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", CODE], cwd=REPO, capture_output=True, text=True, timeout=30
    )
    assert ended.stdout == "alive\n"
    assert ended.returncode == 1
    assert "it hangs" in ended.stderr
