"""The gateway: the Open Inference Protocol v2 over HTTP in front of the workers; no torch, no CUDA."""
