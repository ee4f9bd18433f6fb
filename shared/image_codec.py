"""Pixels to a file's bytes with their provenance inside, and back.

A file says three times how it came about: to Stable Diffusion tools in the "parameters" text that
they read (a PNG text chunk, the EXIF user comment of JPEG and WebP); to whoever asks whether it was
made by a model in XMP, by the IPTC digital source type; and to us as JSON in the same XMP.
"""

import io
from typing import Any
from xml.sax.saxutils import escape

from PIL import Image
from PIL.ExifTags import IFD, Base
from PIL.PngImagePlugin import PngInfo

from shared.request import (
    CanonicalEdit,
    CanonicalRequest,
    ImageFormat,
    Provenance,
    canonical_json,
)

# Of zlib, from 0 to 9. Its 6 takes 2.4 times as long for 2 to 3 % less (docs/decisions.md).
_PNG_LEVEL = 4

# The XMP property that holds the provenance, in a namespace of ours.
_NAMESPACE = "urn:stable-diffusion-on-ray:1"
_PROPERTY = "provenance"

_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about=""
 xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmlns:sdr="{namespace}">
<Iptc4xmpExt:DigitalSourceType>{source_type}</Iptc4xmpExt:DigitalSourceType>
<sdr:{property}>{provenance}</sdr:{property}>
</rdf:Description>
</rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""

# How a picture came about, in the IPTC's terms: by a model alone, or by one from another picture.
MADE_BY_A_MODEL = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
MADE_WITH_A_MODEL = (
    "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
)


def encode(
    image: Image.Image, provenance: Provenance, format: ImageFormat = "png", quality: int = 90
) -> bytes:
    """`image` as a file with `provenance` inside.

    Equal arguments give equal bytes: no time is written. `quality` is that of JPEG and WebP, from
    0 to 100; PNG is lossless.
    """
    buffer = io.BytesIO()
    metadata = _png_metadata if format == "png" else _exif_metadata
    options = {"compress_level": _PNG_LEVEL} if format == "png" else {"quality": quality}
    image.save(buffer, format=format, **metadata(provenance), **options)
    return buffer.getvalue()


def read_provenance(data: bytes) -> Provenance:
    """What a picture of ours says of itself; ValueError if it is none."""
    with Image.open(io.BytesIO(data)) as image:
        try:
            found = _find(image.getxmp())
        except SyntaxError:  # XMP that is no XML
            found = None
    if found is None:
        raise ValueError("the picture carries no provenance of this project")
    return Provenance.model_validate_json(found)


def source_type(request: CanonicalRequest) -> str:
    """The IPTC digital source type of the picture that `request` gives."""
    return MADE_WITH_A_MODEL if isinstance(request, CanonicalEdit) else MADE_BY_A_MODEL


def parameters_text(provenance: Provenance) -> str:
    """The request as Stable Diffusion tools write it, in the notation of AUTOMATIC1111's web UI."""
    request = provenance.request
    settings = {
        "Steps": request.num_inference_steps,
        "Sampler": request.scheduler,
        "CFG scale": f"{request.guidance_scale:g}",
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        "Model hash": provenance.model_fingerprint[:10],
        "Model": provenance.model,
    }
    adapters = [f"<lora:{name}:{weight:g}>" for name, weight in request.lora.items()]
    lines = [" ".join([request.prompt, *adapters])]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in settings.items()))
    return "\n".join(lines)


def _quoted(value: Any) -> str:
    text = str(value)
    return canonical_json(text) if any(sign in text for sign in ',:\n"') else text


def _png_metadata(provenance: Provenance) -> dict[str, Any]:
    text = PngInfo()
    text.add_itxt("parameters", parameters_text(provenance))
    text.add_itxt("XML:com.adobe.xmp", _xmp(provenance))
    return {"pnginfo": text}


def _exif_metadata(provenance: Provenance) -> dict[str, Any]:
    exif = Image.Exif()
    # Eight bytes name the encoding (EXIF 2.3, 4.6.5); readers take the order of bytes for granted.
    comment = b"UNICODE\0" + parameters_text(provenance).encode("utf-16-be")
    exif.get_ifd(IFD.Exif)[Base.UserComment] = comment
    return {"exif": exif, "xmp": _xmp(provenance).encode()}


def _xmp(provenance: Provenance) -> str:
    return _XMP.format(
        namespace=_NAMESPACE,
        source_type=source_type(provenance.request),
        property=_PROPERTY,
        provenance=_as_xml_text(canonical_json(provenance.model_dump())),
    )


def _as_xml_text(json_text: str) -> str:
    # The only characters of a JSON text that XML does not know.
    for sign in "\ufffe\uffff":
        json_text = json_text.replace(sign, f"\\u{ord(sign):04x}")
    return escape(json_text)


def _find(xmp: Any) -> str | None:
    """Our property, wherever Pillow puts it in what it has read."""
    if isinstance(xmp, dict):
        if isinstance(xmp.get(_PROPERTY), str):
            return str(xmp[_PROPERTY])
        xmp = list(xmp.values())
    if isinstance(xmp, list):
        return next((found for each in xmp if (found := _find(each)) is not None), None)
    return None
