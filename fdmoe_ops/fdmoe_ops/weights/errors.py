"""What can be wrong with held weights."""


class WeightsError(RuntimeError):
    """Weights cannot be held, or what a manifest names cannot be mapped. The text names the file or device, what was
    found there and what is needed."""
