import hashlib
from pathlib import Path

import pytest

from serving.app import ServiceArgs
from serving.auth import TokenAuth, Unauthorized, token_hash, tokens_from_environment


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
    secret = hashlib.sha256(b"secret").hexdigest()
    assert ServiceArgs().http.token_hashes == (secret,)
    # Whatever else the arguments say of HTTP, but for tokens.
    args = ServiceArgs.model_validate({"http": {"timeout_s": 5}})
    assert (args.http.token_hashes, args.http.timeout_s) == ((secret,), 5)
    for own in ([], [token_hash("other")]):
        args = ServiceArgs.model_validate({"http": {"token_hashes": own}})
        assert args.http.token_hashes == tuple(own)


def test_several_tokens_come_from_the_environment_and_a_file(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    environment = {"API_TOKEN": "one two", "API_TOKEN_FILE": str(file)}
    with pytest.raises(ValueError, match=r"API_TOKEN_FILE: .*No such file.*tokens"):
        tokens_from_environment(environment)
    file.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"API_TOKEN_FILE: .*utf-8"):
        tokens_from_environment(environment)
    file.write_text("\n")
    with pytest.raises(ValueError, match="no token in"):
        tokens_from_environment(environment)
    file.write_text("three\nfour\n")
    assert tokens_from_environment(environment) == ["one", "two", "three", "four"]
    assert tokens_from_environment({}) == []
