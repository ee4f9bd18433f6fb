"""A port of this machine for a server that is yet to start: benchmarks and tests have it."""

import contextlib
import random
import socket


def free_port() -> int:
    """Outside of what the system, and Ray for its workers, give to whoever asks for any.

    Ray takes dozens of these as it starts, before the service binds its own.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
