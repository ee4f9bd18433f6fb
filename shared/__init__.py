"""Used by both doors; imports no Ray, no web framework, no Parquet."""

import os

# transformers says at every import that it does without torchvision, which nothing here needs.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
