"""Bearer tokens. Only their hashes are kept, so that a configuration gives nothing away."""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from pathlib import Path


class Unauthorized(Exception):
    """No token, or one that is not known."""


def token_hash(token: str) -> str:
    """SHA-256 hex digest of a token, as the service's `token_hashes` takes it."""
    return hashlib.sha256(token.encode()).hexdigest()


def tokens_from_environment(environment: Mapping[str, str]) -> list[str]:
    """The words of API_TOKEN, and those of the file that API_TOKEN_FILE names; often none.

    Raises ValueError where the file cannot be read or is empty: no service shall be open by
    mistake.
    """
    tokens = environment.get("API_TOKEN", "").split()
    if file := environment.get("API_TOKEN_FILE"):
        try:
            from_file = Path(file).read_text(encoding="utf-8").split()
        except (OSError, UnicodeError) as error:
            raise ValueError(f"API_TOKEN_FILE: {error}") from error
        if not from_file:
            raise ValueError(f"API_TOKEN_FILE: there is no token in {file}")
        tokens += from_file
    return tokens


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
            raise Unauthorized(
                "this is no token of this service" if token else "a bearer token is required"
            )
