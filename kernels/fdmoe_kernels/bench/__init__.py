"""The benchmark of the one-launch layer: beside the torch baseline, the peers and the floor.

`python -m fdmoe_kernels.bench` measures, draws and prints tables; `python -m fdmoe_kernels.bench.budget` measures what
fewer CTAs cost the layer and spare its neighbour.
"""
