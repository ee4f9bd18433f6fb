"""What can go wrong, as types that both doors translate.

InvalidRequest    the caller's mistake; names the field
QueueFull         no room to wait; try again later
TooBusy           QueueFull of a request that could be finished in its time, if it were alone
Overloaded        QueueFull of a service, which says when
DeadlineExceeded  not finished, or not to be finished, in the time that it had
Cancelled         the caller gave the request up
UnknownModel      a model that is not served
ImageBlocked      the checkpoint's safety checker refused the picture
RenderFailed      the pipeline failed on this request alone
NotReady          nobody would render anything now
GeneratorLost     whoever rendered the request died, perhaps of it
ModelUnavailable  the configured checkpoint cannot be loaded
EngineDead        fatal: the engine no longer runs, nothing it held will finish
"""


class InvalidRequest(ValueError):
    """A request that cannot be rendered as it stands. `field` is the argument to mend."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(field, message)  # both in args, so that it survives pickling
        self.field = field
        self.message = message

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


class QueueFull(RuntimeError):
    """The engine already holds as many waiting requests as its configuration allows."""


class TooBusy(QueueFull):
    """What is under way leaves the request too little time; one with more time may have room."""


class Overloaded(QueueFull):
    """No place in any queue; `retry_after_s` seconds from now the work there is may be done."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(retry_after_s)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(RuntimeError):
    """The request cannot be, or was not, finished in the time it was given."""


class Cancelled(RuntimeError):
    """The request was cancelled before its picture was finished."""


class UnknownModel(ValueError):
    """A model that is none of those served; the message names them."""


class ImageBlocked(RuntimeError):
    """The safety checker that the checkpoint brings found the picture unfit to show."""


class RenderFailed(RuntimeError):
    """The pipeline raised an error of its own; the message says which."""


class NotReady(RuntimeError):
    """Nobody would render a picture now, for this reason."""


class GeneratorLost(RuntimeError):
    """Every generator that was asked for it died while it rendered this request."""


class ModelUnavailable(RuntimeError):
    """The checkpoint is missing, unsafe or incomplete; the message says which and what to do."""


class EngineDead(RuntimeError):
    """The engine was closed or its thread died; its owner has to be replaced."""
