"""Content Credentials: pictures that say who published them, signed as the C2PA specifies.

https://spec.c2pa.org/specifications/specifications/2.2/specs/C2PA_Specification.html
"""

import io
import json
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from shared.config import Settings
from shared.image_codec import MADE_BY_A_MODEL, source_type
from shared.request import GeneratedImage

try:
    import c2pa
except ImportError:  # the extra "credentials"
    c2pa = None

_GENERATOR = "stable-diffusion-on-ray"
# No thumbnail of the picture in itself, no second reading of what was just written.
_SETTINGS = {"builder": {"thumbnail": {"enabled": False}}, "verify": {"verify_after_sign": False}}


class CredentialsConfig(Settings):
    """PEM files on the machine of the ingress: the chain, leaf first, and the leaf's key.

    `timestamp_url` is a time stamping authority (RFC 3161), asked for each picture.
    """

    certificate_chain: Path
    private_key: Path
    algorithm: Literal["es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519"] = "es256"
    timestamp_url: str | None = None


class CredentialsUnusable(ValueError):
    """Nothing can be signed with what is configured; the message says why."""


class SigningFailed(RuntimeError):
    """Of a picture that is rendered, and not given out unsigned; the message says why."""


class ContentCredentials:
    """Signs finished pictures, in any thread.

    A manifest has a name and a time of its own, so that no two signed files have equal bytes.
    """

    def __init__(self, config: CredentialsConfig) -> None:
        """Signs a picture to try; raises CredentialsUnusable where that is not valid."""
        if c2pa is None:
            raise CredentialsUnusable("content_credentials needs c2pa-python: pip install it")
        try:
            self._context = _context(config)
            self._try_out()
        except (OSError, c2pa.C2paError) as error:
            raise CredentialsUnusable(f"content_credentials: {error}") from error

    def sign(self, image: GeneratedImage) -> GeneratedImage:
        """`image` with a signed manifest over all that its file says already.

        Raises SigningFailed, as where no time stamp is to be had.
        """
        origin = source_type(image.provenance.request)
        try:
            signed = self._signed(image.data, image.media_type, origin)
        except c2pa.C2paError as error:
            raise SigningFailed(
                f"the picture was rendered, and could not be signed: {error}"
            ) from None
        return image.model_copy(update={"data": signed})

    def _signed(self, data: bytes, media_type: str, origin: str) -> bytes:
        signed = io.BytesIO()
        with c2pa.Builder(_manifest(origin), self._context) as builder:
            builder.sign(media_type, io.BytesIO(data), signed)
        return signed.getvalue()

    def _try_out(self) -> None:
        """The library signs with the key of another certificate without a word."""
        blank = io.BytesIO()
        Image.new("RGB", (8, 8)).save(blank, format="png")
        signed = self._signed(blank.getvalue(), "image/png", MADE_BY_A_MODEL)
        with c2pa.Reader("image/png", io.BytesIO(signed)) as reader:
            report = json.loads(reader.json())
        if report["validation_state"] == "Invalid":
            codes = ", ".join(each["code"] for each in report["validation_status"])
            raise CredentialsUnusable(f"content_credentials: what they sign is not valid: {codes}")


def _context(config: CredentialsConfig) -> Any:
    chain, key = config.certificate_chain.read_bytes(), config.private_key.read_bytes()
    info = c2pa.C2paSignerInfo(config.algorithm, chain, key, config.timestamp_url)
    return c2pa.Context(c2pa.Settings.from_dict(_SETTINGS), c2pa.Signer.from_info(info))


def _manifest(origin: str) -> dict[str, Any]:
    created = {"action": "c2pa.created", "digitalSourceType": origin}
    return {
        "claim_generator_info": [{"name": _GENERATOR}],
        "assertions": [{"label": "c2pa.actions", "data": {"actions": [created]}}],
    }
