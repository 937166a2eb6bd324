"""The worker process: owns the device, runs batches on the fused or the baseline path, keeps its beat page."""
