"""What can be wrong with a checkpoint.

    ValueError
    └─ CheckpointError                 the model directory cannot be served as it is
       ├─ ConfigError                  config.json is absent, not JSON, or holds a value that cannot be used
       │  └─ UnknownArchitectureError  its architecture is not in the table
       ├─ ShardError                   a file of weights, or their index, cannot be read
       │  ├─ MissingShardError         it is not there
       │  └─ TruncatedShardError       it ends too early
       ├─ TensorError
       │  ├─ MissingTensorError        no file holds it
       │  ├─ WrongShapeError           config.json asks for another shape
       │  └─ UnsupportedDtypeError     the kernels do not compute with it
       └─ LayerIndexError              there is no such decoder layer, or it is not an MoE layer

Each text names the file, what was found there and what is allowed or expected. An OSError other than "no such file"
(a permission, a failing disk) passes through unchanged.
"""


class CheckpointError(ValueError):
    """The model directory cannot be served as it is, or was asked for a layer that it does not have."""


class ConfigError(CheckpointError):
    """config.json is absent, not JSON, or holds a value that cannot be used."""


class UnknownArchitectureError(ConfigError):
    """The architecture in config.json is not in the table; the text names those that are."""


class ShardError(CheckpointError):
    """A safetensors file or their index cannot be read."""


class MissingShardError(ShardError):
    """A file that should hold tensors is not there."""


class TruncatedShardError(ShardError):
    """A file ends before its header or its tensors do; the text has the bytes found and expected."""


class TensorError(CheckpointError):
    """A tensor that a layer is made of cannot be used."""


class MissingTensorError(TensorError):
    """No file holds the tensor; the text names the files that were searched."""


class WrongShapeError(TensorError):
    """The tensor has another shape than config.json asks for."""


class UnsupportedDtypeError(TensorError):
    """The tensor is stored in a type that the kernels do not compute with."""


class LayerIndexError(CheckpointError):
    """No such decoder layer, or not an MoE layer; the text names those that are."""
