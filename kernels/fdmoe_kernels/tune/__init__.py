"""`python -m fdmoe_kernels.tune`: search tile numbers on this device and write its tuning table."""
