"""Our log lines among Serve's: in its files and format, with the id of the request."""

import logging

from diffusers.utils import logging as diffusers_logging


def log_with_serve() -> None:
    """To be called within a replica: `serving`, `shared` and diffusers log as `ray.serve` does."""
    # Its warnings quote prompts, which are the callers' own; and these are told what was cut.
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_default_handler()
    diffusers_logging.enable_propagation()
    for name in ("serving", "shared", "diffusers"):
        logging.getLogger(name).parent = logging.getLogger("ray.serve")
