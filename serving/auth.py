"""Bearer tokens. Only their hashes are kept, so that a configuration gives nothing away."""

import hashlib
import hmac
from collections.abc import Sequence


class Unauthorized(Exception):
    """No token, or one that is not known."""


def token_hash(token: str) -> str:
    """SHA-256 hex digest of a token, as the service's `token_hashes` takes it."""
    return hashlib.sha256(token.encode()).hexdigest()


class TokenAuth:
    """Lets everyone in where no token is configured."""

    def __init__(self, token_hashes: Sequence[str]) -> None:
        self._hashes = [each.lower().encode() for each in token_hashes]

    def check(self, token: str | None) -> None:
        """Raise Unauthorized unless `token` may call."""
        if not self._hashes:
            return
        offered = token_hash(token or "").encode()
        # Every hash is compared, so that the time taken says nothing.
        matches = [hmac.compare_digest(offered, known) for known in self._hashes]
        if not any(matches):
            raise Unauthorized("a valid bearer token is required")
