"""Run the service on this machine, or on the cluster that RAY_ADDRESS names, until Ctrl-C."""

import argparse
import errno
import ipaddress
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from types import FrameType

from serving.serve_environment import SERVE_ENVIRONMENT

os.environ |= SERVE_ENVIRONMENT | os.environ  # before Ray is imported; what is set already stays

import ray
from ray import serve

from serving.app import ServiceArgs, build_app, same_names
from serving.auth import tokens_from_environment
from shared.arguments import (
    add_adapter,
    add_byte_identical,
    add_compile,
    engine_config,
    positive,
)
from shared.config import ModelConfig
from shared.errors import ModelUnavailable
from shared.model_names import absolute, find_folder


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    names = [*dict.fromkeys(options.model or ["postcard"])]  # each once
    first = absolute(ModelConfig(name=names[0], adapters=dict(options.adapter)))
    models = [first, *(absolute(ModelConfig(name=name)) for name in names[1:])]
    address = os.environ.get("RAY_ADDRESS", "local")
    problem = _find_problem(options, models, address)
    if problem is not None:
        print(problem)
        return 1
    try:
        _serve_until_stopped(options, models, address)
    except _NoCluster:
        print(f"There is no Ray cluster at RAY_ADDRESS={address}. Start one with: ray start --head")
        return 1
    return 0


class _NoCluster(Exception):
    """Where RAY_ADDRESS says that there is one."""


def _find_problem(
    options: argparse.Namespace, models: Sequence[ModelConfig], address: str
) -> str | None:
    """What would fail only after Ray has started, in one line."""
    try:
        _try_to_bind(options.host, options.port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return f"Port {options.port} is taken. Choose another, as in: make serve PORT=8001"
        return f"Cannot serve on {options.host}, port {options.port}: {error}"
    try:
        tokens_from_environment(os.environ)
    except ValueError as error:
        return str(error)
    for name in same_names(models):
        return f"Several models are named {name!r}: the last parts of their folders have to differ"
    if address == "local":  # on a cluster the model need not be on this machine
        try:
            for model in models:
                find_folder(model)
            from shared.model_files import describe_model  # seconds: it loads diffusers
            from shared.pipeline import check_fits

            for model in models:
                describe_model(model)
                check_fits(model)
        except ModelUnavailable as error:
            return str(error)
    return None


def _serve_until_stopped(
    options: argparse.Namespace, models: Sequence[ModelConfig], address: str
) -> None:
    # Ctrl-C and a plain kill end the service the same way, also while it is still starting, and
    # also where a shell has started it in the background with Ctrl-C ignored.
    _on_signals(signal.default_int_handler)
    try:
        # Not our token, and it needs nothing of the caller.
        logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        _start_ray(address)
        _on_signals(signal.default_int_handler)  # Ray has its own way with SIGTERM
        serve.start(
            http_options={"host": options.host, "port": options.port},
            logging_config={"log_level": "WARNING"},  # of Serve's own; not of our replicas
        )
        first, *others = models
        args = ServiceArgs(
            model=first,
            other_models=tuple(others),
            engine=engine_config(options),
            num_generators=options.num_generators,
        )
        gpus = ray.cluster_resources().get("GPU", 0) / args.most_generators
        serve.run(build_app(args.model_copy(update={"num_gpus": min(1, gpus)})))
        if not args.http.token_hashes and not _is_loopback(options.host):
            print("\nWARNING: NO TOKEN IS ASKED FOR: whoever comes can render. Set API_TOKEN.")
        print(f"\nReady: http://{_shown(options.host)}:{options.port} (Ctrl-C to stop)", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        print("\nStopping ...", flush=True)
    finally:
        _on_signals(signal.SIG_IGN)  # a second one must not leave half of it behind
        if address != "local" and ray.is_initialized():
            serve.delete("default")
        ray.shutdown()  # a local cluster goes with it


def _start_ray(address: str) -> None:
    """Or join one that runs; raises _NoCluster."""
    try:
        # docs/decisions.md: a dashboard takes a fifth of the speed of a request that is alone.
        ray.init(address=address, include_dashboard=False)
    except (ConnectionError, ValueError) as error:
        if address == "local":
            raise
        raise _NoCluster from error


def _on_signals(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, handler)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m serving",
        description=__doc__,
        epilog="example: python -m serving --model ~/models/sdxl --port 8001",
    )
    parser.add_argument(
        "--model",
        action="append",
        help="bundled name, local folder or hub id (postcard); again for others to choose from",
    )
    add_adapter(parser)
    add_compile(parser)
    add_byte_identical(parser)
    parser.add_argument(
        "--num-generators",
        type=positive,
        default=1,
        metavar="N",
        help="of the first model, which share cores and GPUs (%(default)s; docs/scaling.md)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to bind (%(default)s)")
    parser.add_argument("--port", type=_port, default=8000, help="(%(default)s)")
    return parser.parse_args(arguments)


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"{text} is not a port: they go from 1 to {2**16 - 1}")
    return int(text)


def _is_loopback(host: str) -> bool:
    *_, address = socket.getaddrinfo(host, None)[0]
    return ipaddress.ip_address(address[0]).is_loopback


def _try_to_bind(host: str, port: int) -> None:
    """Raises OSError."""
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


def _shown(host: str) -> str:
    return "localhost" if host in ("127.0.0.1", "0.0.0.0") else host


if __name__ == "__main__":
    sys.exit(main())
