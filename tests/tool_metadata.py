"""What Stable Diffusion tools read in a picture of ours."""

import io

from PIL import Image
from sd_parsers import ParserManager
from sd_parsers.data import PromptInfo

# sd_parsers knows the picture that it read last by its id(), and would take the next one for it
# that gets the place in memory of one that is gone.
_READ: list[Image.Image] = []


def read_by_tools(data: bytes) -> PromptInfo:
    _READ.append(Image.open(io.BytesIO(data)))
    found = ParserManager().parse(_READ[-1])
    assert found is not None
    return found
