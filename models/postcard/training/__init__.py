"""Makes the bundled model from nothing: its scenes, captions and networks."""

import shared  # noqa: F401  first, since it says how much transformers is to log
