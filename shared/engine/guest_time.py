"""How much bulk work may slow online work down: a part of its time, saved and spent. No tensors."""


class GuestTime:
    """Seconds that online forwards may take longer in all: `part` of what they take by themselves.

    What is not spent is kept for later ones, up to the time of one forward.
    """

    def __init__(self, part: float) -> None:
        self._part = part
        self._saved_s = 0.0

    def rows(self, own_s: float, row_s: float) -> int:
        """How many more rows of `row_s` a forward may have that takes `own_s` without them."""
        self._saved_s = min(self._saved_s + self._part * own_s, own_s)
        return int(max(0.0, self._saved_s) / row_s) if row_s else 0

    def spend(self, seconds: float) -> None:
        self._saved_s -= seconds
