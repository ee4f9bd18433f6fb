"""Our log lines among Serve's: in its files and format, with the id of the request."""

import logging


def log_with_serve() -> None:
    """To be called within a replica: `serving` and `shared` log as `ray.serve` does."""
    for name in ("serving", "shared"):
        logging.getLogger(name).parent = logging.getLogger("ray.serve")


def log_diffusers_with_serve() -> None:
    """The same for diffusers, which is loaded by this."""
    from diffusers.utils import logging as diffusers_logging

    # Its warnings quote prompts, which are the callers' own; and these are told what was cut.
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_default_handler()
    diffusers_logging.enable_propagation()
    logging.getLogger("diffusers").parent = logging.getLogger("ray.serve")
