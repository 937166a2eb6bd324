"""The tuning tables: JSON files, one a device and the defaults, and what reads, checks and writes them.

    {"description": "...", "forms": {"triton": {"half": [ROW, ...], "single": [ROW, ...]}}}
    ROW = {"tokens_per_expert": 6.0, "rows": 16, ...}

A ROW serves batches of up to `tokens_per_expert` tokens per expert in the average; the last one's is null: all others.
A form is one kind of kernel with tile numbers of its own. `half` is for bfloat16 and float16, `single` for float32,
`tf32` for float32 with tensor cores (`single` serves where it is missing).
"""
