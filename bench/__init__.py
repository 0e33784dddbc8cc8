"""Benchmarks of Wayside against peers on the same machine, in the same run: ``python -m bench``.

Every figure that matters here is a ratio. What is measured is in `measures`, the peers in `peers`, our own
server in `hub`, the C load generators in `loadgen`, and what is printed, saved and drawn in `report`.
"""
