"""The bulk door: plan, render and report over one output folder. What is there is never redone.

plan/run.json             what the run is; written last, so a plan without it is no plan
plan/shards/000000.parquet    canonical requests, one row per image
rejected/000000.parquet   rows that cannot be rendered, with the reason
images/000000/<image_id>.png
metadata/000000.parquet   one row per image of the shard; its presence commits the shard
summary.json, report.html
"""
