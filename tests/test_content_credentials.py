"""Signed pictures, read back by the library that verifies them."""

import asyncio
import base64
import datetime
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import c2pa
import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding as Pem
from cryptography.hazmat.primitives.serialization import NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from serving.content_credentials import (
    ContentCredentials,
    CredentialsConfig,
    CredentialsUnusable,
)
from serving.door import Call, HttpConfig
from shared.config import EngineConfig, ModelConfig
from shared.counters import Priority
from shared.errors import DeadlineExceeded
from shared.image_codec import MADE_BY_A_MODEL, MADE_WITH_A_MODEL, read_provenance
from shared.renderer import Renderer
from shared.request import Encoding, GeneratedImage, ImageFormat, ImageRequest
from tests.http_server import InProcess, http_server, picture, read_events
from tests.tool_metadata import read_by_tools

SMALL = {"prompt": "dunes", "seed": 1, "num_inference_steps": 2}


class Authority:
    """Certifies keys for signing."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._certify("authority", self._key, days=30, is_authority=True)

    def issue(self, folder: Path, days: float = 30) -> CredentialsConfig:
        """A new key and its certificate, which is good for `days` from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = self._certify("publisher", key, days, is_authority=False)
        config = CredentialsConfig(
            certificate_chain=folder / "chain.pem", private_key=folder / "key.pem"
        )
        config.certificate_chain.write_bytes(leaf + self.certificate)
        config.private_key.write_bytes(
            key.private_bytes(Pem.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        return config

    def _certify(
        self, name: str, key: ec.EllipticCurvePrivateKey, days: float, *, is_authority: bool
    ) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        usage = x509.KeyUsage(
            digital_signature=not is_authority,
            key_cert_sign=is_authority,
            crl_sign=is_authority,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name("authority"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=60))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )
        if not is_authority:
            purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
            builder = builder.add_extension(purpose, critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Pem.PEM)


def _name(common: str) -> x509.Name:
    parts = {NameOID.ORGANIZATION_NAME: "Tests", NameOID.COMMON_NAME: common}
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in parts.items()])


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def host(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    config = HttpConfig(content_credentials=authority.issue(tmp_path_factory.mktemp("keys")))
    with (
        Renderer(ModelConfig(), EngineConfig()) as renderer,
        http_server(InProcess(renderer), config) as host,
    ):
        yield host


def verified(data: bytes, format: str, authority: Authority) -> dict[str, Any]:
    """The signed manifest of a file that is as it was signed, by a key of `authority`."""
    trust = {"trust": {"user_anchors": authority.certificate.decode()}}
    context = c2pa.Context(c2pa.Settings.from_dict(trust))
    with c2pa.Reader(f"image/{format}", io.BytesIO(data), context=context) as reader:
        report = json.loads(reader.json())
    assert report["validation_state"] == "Trusted", report["validation_status"]
    manifest: dict[str, Any] = report["manifests"][report["active_manifest"]]
    return manifest


def origin(manifest: dict[str, Any]) -> str:
    (created,) = manifest["assertions"][0]["data"]["actions"]
    assert created["action"] == "c2pa.created"
    return str(created["digitalSourceType"])


@pytest.mark.parametrize("format", get_args(ImageFormat))
def test_every_format_is_signed_over_what_it_says_already(
    host: str, authority: Authority, format: str
) -> None:
    body = SMALL | {"size": "64x64", "output_format": format, "n": 2}
    answer = requests.post(f"{host}/v1/images/generations", json=body, timeout=60).json()
    for seed, each in enumerate(answer["data"], start=1):
        data = base64.b64decode(each["b64_json"])
        assert origin(verified(data, format, authority)) == MADE_BY_A_MODEL
        assert read_provenance(data).request.seed == seed
        assert read_by_tools(data).samplers[0].parameters["seed"] == str(seed)


def test_an_edit_is_called_a_composite(host: str, authority: Authority) -> None:
    source = requests.get(f"{host}/imagine", SMALL | {"img_size": 64}, timeout=60).content
    answer = requests.post(
        f"{host}/v1/images/edits", SMALL, files={"image": source}, timeout=60
    ).json()
    data = base64.b64decode(answer["data"][0]["b64_json"])
    assert origin(verified(data, "png", authority)) == MADE_WITH_A_MODEL


def test_the_picture_of_a_stream_is_signed_too(host: str, authority: Authority) -> None:
    body = SMALL | {"width": 64, "height": 64}
    response = requests.post(f"{host}/imagine/events", json=body, timeout=60)
    *_, (name, data) = read_events(response)
    assert name == "image"
    verified(picture(data["image"]), "png", authority)


def test_a_changed_picture_is_found_out(host: str, authority: Authority) -> None:
    data = requests.get(f"{host}/imagine", SMALL | {"img_size": 64}, timeout=60).content
    verified(data, "png", authority)
    middle = data.index(b"IDAT") + 100
    changed = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    with pytest.raises(AssertionError, match=r"assertion\.dataHash\.mismatch"):
        verified(changed, "png", authority)


def test_what_cannot_sign_is_refused_at_the_start(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    good, other = authority.issue(tmp_path), authority.issue(tmp_path / "other")
    expired = authority.issue(tmp_path / "other", days=-1)
    for wrong, reason in [
        (good.model_copy(update={"private_key": other.private_key}), "claimSignature.mismatch"),
        (good.model_copy(update={"private_key": tmp_path / "none.pem"}), "No such file"),
        (good.model_copy(update={"private_key": good.certificate_chain}), "private key"),
        (good.model_copy(update={"algorithm": "ed25519"}), "private key"),
        (expired, "not valid at time of signing"),
    ]:
        with pytest.raises(CredentialsUnusable, match=reason):
            ContentCredentials(wrong)


def test_a_certificate_that_runs_out_is_told_and_gives_out_no_unsigned_picture(
    authority: Authority, tmp_path: Path
) -> None:
    good_for_s = 5
    with Renderer(ModelConfig(), EngineConfig()) as renderer:
        config = HttpConfig(content_credentials=authority.issue(tmp_path, good_for_s / 86_400))
        with http_server(InProcess(renderer), config) as host:
            time.sleep(good_for_s + 1)
            answer = requests.get(f"{host}/imagine", SMALL | {"img_size": 64}, timeout=60)
    assert answer.status_code == 500
    assert answer.headers["x-should-retry"] == "false"
    error = answer.json()["error"]
    assert error["code"] == "signing_failed"
    assert "not valid at time of signing" in error["message"]


class SlowToSign(ContentCredentials):
    """As if its time stamping authority did not answer."""

    def sign(self, image: GeneratedImage) -> GeneratedImage:
        time.sleep(5)
        return super().sign(image)


@pytest.mark.anyio
async def test_signing_has_the_time_of_its_request(authority: Authority, tmp_path: Path) -> None:
    with Renderer(ModelConfig(), EngineConfig()) as renderer:
        request = renderer.profile.canonical(ImageRequest(prompt="a", width=64, height=64), seed=1)
        await renderer.render(request)
        deadline = asyncio.get_running_loop().time() + 4
        credentials = SlowToSign(authority.issue(tmp_path))
        call = Call(InProcess(renderer), credentials, deadline, Priority.ONLINE)
        with pytest.raises(DeadlineExceeded, match="not signed"):
            await call.render([request], Encoding())
