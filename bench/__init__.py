"""What Engines costs, beside the bare loops and the programs that people would otherwise run.

Every figure is a ratio within one run, or an absolute that the machine's speed hardly moves (memory).
`python -m bench --help` says how to run it; `docs/benchmarks.md` holds the last table that was kept.
"""
