"""Heartbeat page, stall detection, recovery policy and supervision; no torch, no CUDA."""
