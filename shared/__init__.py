"""Used by both doors; imports no Ray, no web framework, no Parquet."""
