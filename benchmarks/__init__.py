"""What the measurements must reach, each printed by one script: `python -m benchmarks.peak`, and so on.

Real load on real replicas of this machine; nothing else may run meanwhile. `results/` holds what they measured.
"""
