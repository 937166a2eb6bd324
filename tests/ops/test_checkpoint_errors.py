"""What is said of a broken checkpoint: file, tensor or key, what was found, what is allowed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch

from fdmoe_ops.checkpoint import (
    Checkpoint,
    CheckpointError,
    ConfigError,
    LayerIndexError,
    MissingShardError,
    MissingTensorError,
    ShardError,
    TruncatedShardError,
    UnknownArchitectureError,
    UnsupportedDtypeError,
    WrongShapeError,
)
from fdmoe_ops.checkpoint.config import read_config
from fdmoe_ops.demo import write_demo_model

KNOWN = (
    "MixtralForCausalLM, Qwen3MoeForCausalLM, OlmoeForCausalLM, Qwen2MoeForCausalLM, Qwen3NextForCausalLM, "
    "DeepseekV2ForCausalLM, DeepseekV3ForCausalLM, Glm4MoeForCausalLM, GptOssForCausalLM"
)
UP = "model.layers.2.mlp.experts.3.up_proj.weight"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    write_demo_model(tmp_path / "demo")
    return tmp_path / "demo"


def failure(error_type: type[CheckpointError], directory: Path, layers: tuple[int, ...] = (0, 1, 2, 3)) -> str:
    """What opening and checking the directory raises: exactly this type, and its text."""
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory).check(layers)
    assert type(caught.value) is error_type
    return str(caught.value)


def edit_config(directory: Path, **values: object) -> Path:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return path


def edit_tensors(directory: Path, **changes: np.ndarray[Any, Any] | None) -> Path:
    """Replace tensors of model.safetensors, or drop those that are None."""
    path = directory / "model.safetensors"
    tensors = load_file(path)
    for name, value in changes.items():
        del tensors[name]
        if value is not None:
            tensors[name] = value
    save_file(tensors, path)
    return path


def split(directory: Path, weight_map: object = None) -> tuple[Path, Path]:
    """Two shards and an index instead of one file: layers 0 and 1, and the rest."""
    single = directory / "model.safetensors"
    tensors = load_file(single)
    single.unlink()
    shards = (directory / "model-00001-of-00002.safetensors", directory / "model-00002-of-00002.safetensors")
    early = {name for name in tensors if ".layers.0." in name or ".layers.1." in name}
    save_file({name: tensors[name] for name in tensors.keys() & early}, shards[0])
    save_file({name: tensors[name] for name in tensors.keys() - early}, shards[1])
    if weight_map is None:
        weight_map = {name: shards[name not in early].name for name in tensors}
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return shards


# ---- config.json


def test_missing_directory(tmp_path: Path) -> None:
    path = tmp_path / "absent"
    assert failure(ConfigError, path) == f"{path}: not a directory; a Hugging Face model directory is needed"


def test_missing_config(demo: Path) -> None:
    (demo / "config.json").unlink()
    assert failure(ConfigError, demo) == f"{demo}/config.json: not found; every Hugging Face model directory has one"


def test_config_is_not_json(demo: Path) -> None:
    (demo / "config.json").write_text('{"architectures": ')
    assert failure(ConfigError, demo).startswith(f"{demo}/config.json: not JSON: Expecting value: line 1 column 19")


def test_config_is_not_an_object(demo: Path) -> None:
    (demo / "config.json").write_text("[]")
    assert failure(ConfigError, demo) == f"{demo}/config.json: holds a JSON list; an object is needed"


@pytest.mark.parametrize(
    ("architectures", "shown"),
    [
        (["LlamaForCausalLM"], '["LlamaForCausalLM"]'),
        (["Qwen3MoeModel", "Qwen3MoeForCausalLM"], '["Qwen3MoeModel", "Qwen3MoeForCausalLM"]'),
        ([], "[]"),
        (None, "null"),
        ("MixtralForCausalLM", '"MixtralForCausalLM"'),
        ([3], "[3]"),
    ],
)
def test_unknown_architecture_names_those_known(architectures: object, shown: str, demo: Path) -> None:
    path = edit_config(demo, architectures=architectures)
    assert failure(UnknownArchitectureError, demo) == (
        f"{path}: architectures is {shown}; the first must be one of {KNOWN}"
    )


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("hidden_act", "gelu", 'hidden_act is "gelu"; only "silu" can be served: the layers compute SwiGLU'),
        ("hidden_act", None, 'hidden_act is null; only "silu" can be served: the layers compute SwiGLU'),
        ("hidden_size", "64", 'hidden_size is "64"; an integer of at least 1 is needed'),
        ("hidden_size", 64.0, "hidden_size is 64.0; an integer of at least 1 is needed"),
        ("num_experts", True, "num_experts is true; an integer of at least 1 is needed"),
        ("num_experts", 0, "num_experts is 0; an integer of at least 1 is needed"),
        ("moe_intermediate_size", -1, "moe_intermediate_size is -1; an integer of at least 1 is needed"),
        ("num_hidden_layers", None, "num_hidden_layers is null; an integer of at least 1 is needed"),
        ("norm_topk_prob", 1, "norm_topk_prob is 1; true or false is needed"),
        ("num_experts_per_tok", 9, "num_experts_per_tok is 9; at most 8, the number of experts, is allowed"),
        ("mlp_only_layers", "0", 'mlp_only_layers is "0"; a list of layer indices is needed'),
        ("mlp_only_layers", [0, 1.5], "mlp_only_layers is [0, 1.5]; a list of layer indices is needed"),
        ("decoder_sparse_step", 0, "decoder_sparse_step is 0; an integer of at least 1 is needed"),
        ("decoder_sparse_step", 5, "num_hidden_layers is 4; none of these layers has experts"),
        (
            "num_local_experts",
            4,
            '{"num_experts": 8, "num_local_experts": 4}; these two names of one value must agree',
        ),
    ],
)
def test_value_of_config_that_cannot_be_used(key: str, value: object, said: str, demo: Path) -> None:
    path = edit_config(demo, **{key: value})
    assert failure(ConfigError, demo) == f"{path}: {said}"


V2, V3, OSS = "DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "GptOssForCausalLM"
ONE = "an integer of at least 1 is needed"


@pytest.mark.parametrize(
    ("architecture", "values", "said"),
    [
        (V2, {"num_experts_per_tok": None}, f"num_experts_per_tok is null; {ONE}"),
        (V2, {"topk_method": "noaux_tc"}, 'topk_method is "noaux_tc"; "greedy" or "group_limited_greedy" is needed'),
        (V2, {"topk_method": "group_limited_greedy"}, f"n_group is null; {ONE}"),
        (
            V2, {"norm_topk_prob": True},
            "norm_topk_prob is true; only false can be served: it means that weights are scaled and not divided by "
            "their sum",
        ),
        (
            V2, {"mlp_bias": True},
            "mlp_bias is true; only false can be served: it means that the shared experts have no biases",
        ),
        (
            V3, {"moe_layer_freq": 2},
            "moe_layer_freq is 2; only 1 can be served: it means that every layer after the dense ones is MoE",
        ),
        (V3, {"first_k_dense_replace": -1}, "first_k_dense_replace is -1; an integer of at least 0 is needed"),
        (V3, {"first_k_dense_replace": 61}, "num_hidden_layers is 61; none of these layers has experts"),
        (V3, {"n_shared_experts": None}, f"n_shared_experts is null; {ONE}"),
        (V3, {"routed_scaling_factor": 0}, "routed_scaling_factor is 0; a finite number above 0 is needed"),
        (V3, {"routed_scaling_factor": True}, "routed_scaling_factor is true; a finite number above 0 is needed"),
        (V3, {"topk_group": 9}, "topk_group is 9; at most 8, which is n_group, is allowed"),
        (
            V3, {"n_group": 7},
            "the experts cannot be routed as it says: groups is 7; a divisor of 256, the number of experts, is needed",
        ),
        (
            V3, {"n_routed_experts": 16, "topk_group": 1},
            "the experts cannot be routed as it says: top_k is 8; the 1 best groups have 2 experts",
        ),
        (
            V3, {"n_routed_experts": 8, "num_local_experts": 9},
            '{"n_routed_experts": 8, "num_local_experts": 9}; these two names of one value must agree',
        ),
        (OSS, {"swiglu_limit": None}, "swiglu_limit is null; a finite number above 0 is needed"),
        (
            OSS, {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": []}},
            'quantization_config.quant_method is "mxfp4"; only weights in float32, bfloat16 or float16 can be served',
        ),
        (
            V3, {"quantization_config": {"quant_method": "fp8"}},
            'quantization_config.quant_method is "fp8"; only weights in float32, bfloat16 or float16 can be served',
        ),
    ],
)  # fmt: skip
def test_value_that_the_further_architectures_refuse(
    architecture: str, values: dict[str, object], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"architectures": [architecture], "num_experts_per_tok": 8} | values))
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert str(caught.value) == f"{path}: {said}"


# ---- layers


@pytest.mark.parametrize("index", [-1, 4])
def test_layer_out_of_range(index: int, demo: Path) -> None:
    assert failure(LayerIndexError, demo, (0, index)) == (
        f"{demo}: there is no layer {index}; decoder layers are 0 to 3"
    )


def test_layer_without_experts(demo: Path) -> None:
    edit_config(demo, mlp_only_layers=[2])
    said = f"{demo}: layer 2 has no experts; layers with experts are 0, 1, 3"
    assert failure(LayerIndexError, demo) == said
    with pytest.raises(LayerIndexError, match="layer 2 has no experts"):
        Checkpoint.open(demo).load(2, "cpu", torch.float32)


# ---- tensors


def test_missing_tensor(demo: Path) -> None:
    path = edit_tensors(demo, **{UP: None})
    assert failure(MissingTensorError, demo) == f"{path}: no tensor {UP}"
    # the other layers are whole
    Checkpoint.open(demo).check((0, 1, 3))
    with pytest.raises(MissingTensorError):
        Checkpoint.open(demo).load(2, "cpu", torch.float32)


def test_missing_tensor_names_every_file_searched(demo: Path) -> None:
    edit_tensors(demo, **{UP: None})
    first, second = split(demo)
    assert failure(MissingTensorError, demo) == f"{demo / INDEX}: no tensor {UP}"
    (demo / INDEX).unlink()
    assert failure(MissingTensorError, demo) == f"{first}, {second}: no tensor {UP}"


def test_tensor_is_not_in_the_shard_that_the_index_names(demo: Path) -> None:
    first, _ = split(demo)
    index = json.loads((demo / INDEX).read_text())
    index["weight_map"][UP] = first.name
    (demo / INDEX).write_text(json.dumps(index))
    assert failure(MissingTensorError, demo) == f"{first}: no tensor {UP}, though {INDEX} says so"


def test_wrong_shape(demo: Path) -> None:
    path = edit_tensors(demo, **{UP: np.zeros((32, 63), np.float32)})
    assert failure(WrongShapeError, demo) == f"{path}: tensor {UP} has shape [32, 63]; config.json asks for [32, 64]"


def test_config_of_another_size_than_the_tensors(demo: Path) -> None:
    edit_config(demo, num_experts=7)
    assert failure(WrongShapeError, demo) == (
        f"{demo}/model.safetensors: tensor model.layers.0.mlp.gate.weight has shape [8, 64]; "
        "config.json asks for [7, 64]"
    )


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.float8_e4m3fn, "F8_E4M3"), (torch.int8, "I8"), (torch.float64, "F64")]
)
def test_unsupported_dtype(dtype: torch.dtype, name: str, demo: Path) -> None:
    path = demo / "model.safetensors"
    tensors = load_torch(path)
    tensors[UP] = tensors[UP].to(dtype)
    save_torch(tensors, path)
    assert failure(UnsupportedDtypeError, demo) == (
        f"{path}: tensor {UP} is stored as {name}; F32, BF16, F16 can be served"
    )


def test_dtype_of_an_unsupported_checkpoint(demo: Path) -> None:
    path = demo / "model.safetensors"
    save_torch({name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_torch(path).items()}, path)
    with pytest.raises(UnsupportedDtypeError, match=r"down_proj\.weight is stored as F8_E4M3; F32, BF16, F16 can be"):
        _ = Checkpoint.open(demo).dtype


# ---- files


def test_no_weights(demo: Path) -> None:
    (demo / "model.safetensors").unlink()
    assert failure(MissingShardError, demo) == (
        f"{demo}: holds no weights; model.safetensors, {INDEX} or *.safetensors is needed"
    )


def test_truncated_shard(demo: Path) -> None:
    path = demo / "model.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for kept, said in (
        (len(whole) - 1, f"{len(whole) - 1} bytes; its header promises {len(whole)}"),
        (header, f"{header} bytes; its header promises {len(whole)}"),
        (header - 1, f"{header - 1} bytes; its header alone ends at {header}"),
        (8, f"8 bytes; its header alone ends at {header}"),
        (7, "7 bytes; a safetensors file has more than 8"),
        (0, "0 bytes; a safetensors file has more than 8"),
    ):
        path.write_bytes(whole[:kept])
        assert failure(TruncatedShardError, demo) == f"{path}: {said}"


def test_truncated_shard_of_an_index(demo: Path) -> None:
    _, second = split(demo)
    size = second.stat().st_size
    with second.open("r+b") as file:
        file.truncate(size // 2)
    assert failure(TruncatedShardError, demo) == f"{second}: {size // 2} bytes; its header promises {size}"
    Checkpoint.open(demo).check((0, 1))


def test_shard_that_is_longer_than_its_header_says(demo: Path) -> None:
    path = demo / "model.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"more")
    assert failure(ShardError, demo) == (
        f"{path}: {size + 4} bytes; its header promises {size}, and nothing may follow"
    )


def test_file_that_is_no_safetensors_file(demo: Path) -> None:
    # what a clone without large-file support leaves
    path = demo / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1074160\n")
    assert failure(ShardError, demo).startswith(f"{path}: not a safetensors file: it begins with b'version '")


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (b"not JSON", b""),
        (b"[1, 2]", b""),
        (b'{"a": {"dtype": "F32", "shape": [1]}}', b"1234"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', b"1234"),
        (b'{"a": {"dtype": "Q7", "shape": [1], "data_offsets": [0, 4]}}', b"1234"),
    ],
)
def test_header_is_nonsense(header: bytes, data: bytes, demo: Path) -> None:
    path = demo / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    assert failure(ShardError, demo).startswith(f"{path}: not a usable safetensors file: ")


def test_index_names_an_absent_shard(demo: Path) -> None:
    _, second = split(demo)
    second.unlink()
    gate = "model.layers.2.mlp.gate.weight"
    assert failure(MissingShardError, demo) == f"{second}: not found, though {INDEX} says that it holds {gate}"
    Checkpoint.open(demo).check((0, 1))


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", "..", "", 3])
def test_index_does_not_lead_out_of_its_directory(file: object, demo: Path) -> None:
    split(demo, weight_map={UP: file})
    assert failure(ShardError, demo) == (
        f"{demo / INDEX}: weight_map has {UP} in {file!r}; a .safetensors file beside it is needed"
    )


def test_index_without_a_map(demo: Path) -> None:
    split(demo, weight_map=[])
    assert failure(ShardError, demo) == f"{demo / INDEX}: weight_map is a JSON list; an object is needed"
    (demo / INDEX).write_text("{")
    assert failure(ShardError, demo).startswith(f"{demo / INDEX}: not JSON: ")


def test_two_files_with_the_same_tensor_and_no_index(demo: Path) -> None:
    first, second = split(demo)
    (demo / INDEX).unlink()
    save_file(load_file(second) | {"model.layers.0.mlp.gate.weight": np.zeros(3, np.float32)}, second)
    assert failure(ShardError, demo) == (
        f"{second}: tensor model.layers.0.mlp.gate.weight is also in {first.name}, and no {INDEX} decides"
    )
