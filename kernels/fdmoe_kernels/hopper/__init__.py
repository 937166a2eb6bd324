"""The Hopper form of the one-launch kernel: CUDA compiled at run time, for bfloat16 and float16 layers on compute
capability 9.0. portable.py serves everything else."""
