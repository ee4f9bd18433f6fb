import hashlib

import pytest

from serving.app import ServiceArgs
from serving.auth import TokenAuth, Unauthorized, token_hash


def test_without_tokens_everyone_may_call() -> None:
    TokenAuth(()).check(None)
    TokenAuth(()).check("anything")


def test_only_known_tokens_may_call() -> None:
    auth = TokenAuth((token_hash("first"), token_hash("second").upper()))
    auth.check("first")
    auth.check("second")
    for token in (None, "", "First", token_hash("first")):
        with pytest.raises(Unauthorized):
            auth.check(token)


def test_the_environments_token_is_kept_as_its_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ServiceArgs().http.token_hashes == ()
    monkeypatch.setenv("API_TOKEN", "secret")
    assert ServiceArgs().http.token_hashes == (hashlib.sha256(b"secret").hexdigest(),)
