"""The NVML probe: NVML calls can block for ever, so they are made in a process of their own (DESIGN: processes)."""
