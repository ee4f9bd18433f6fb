"""The bulk door: plan, render and report over one output folder. What is there is never redone.

plan/claims/<hash>.json   what run the folder is for, before there is a plan
plan/run.json             the same with the plan's numbers; a plan without it is not finished
plan/shards/000000.parquet    canonical requests, one row per image
rejected/000000.parquet   rows that cannot be rendered, with the reason
images/000000/<image_id>.png    or data/000000.parquet, or shards/000000.tar
metadata/000000.parquet   one row per image of the shard; its presence commits the shard
summary.json, report.html
"""
