"""The tuning tables: JSON files, one a device and the defaults, and what reads, checks and writes them.

    {"description": "...", "forms": {"triton": {"half": [ROW, ...], "single": [ROW, ...]}}}
    ROW = {"tokens_per_expert": 6.0, "rows": 16, ...}

A ROW serves batches of up to `tokens_per_expert` tokens per expert in the average; the last one's is null: all others.
A form is one kind of kernel with tile numbers of its own. `half` is for bfloat16 and float16, `half-alone` for one
token in them (`half` serves where it is missing), `single` for float32, `tf32x3` and `tf32` for float32 on tensor cores
by three products and by one (`single` serves where they are missing).
"""
