"""The service around a single-kernel MoE layer: gateway, workers, checkpoints and the command line."""
