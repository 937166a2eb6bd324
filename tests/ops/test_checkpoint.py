"""Layers read from a checkpoint against the modules of transformers that saved it."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers

from fdmoe_kernels.routing import RoutingRule
from fdmoe_ops.checkpoint import Checkpoint, LayerShape
from fdmoe_ops.checkpoint.config import read_config
from fdmoe_ops.demo import write_demo_model

TINY = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 40,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None,
}  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A model of transformers, and what its checkpoint must say."""

    make: Callable[[], transformers.PreTrainedModel]
    dtype: torch.dtype
    shape: LayerShape
    routing: RoutingRule
    moe_layers: tuple[int, ...]


MODELS = {
    "MixtralForCausalLM": Model(
        lambda: transformers.MixtralForCausalLM(
            transformers.MixtralConfig(**TINY, intermediate_size=24, num_local_experts=4, num_experts_per_tok=3)
        ),
        torch.bfloat16, LayerShape(32, 24, 4), RoutingRule(3, renormalize=True), (0, 1, 2),
    ),
    "Qwen3MoeForCausalLM": Model(
        lambda: transformers.Qwen3MoeForCausalLM(
            transformers.Qwen3MoeConfig(
                **(TINY | {"num_hidden_layers": 6}), moe_intermediate_size=16, intermediate_size=48, num_experts=6,
                num_experts_per_tok=2, norm_topk_prob=True, decoder_sparse_step=2, mlp_only_layers=[3],
            )
        ),
        torch.float32, LayerShape(32, 16, 6), RoutingRule(2, renormalize=True), (1, 5),
    ),
    "OlmoeForCausalLM": Model(
        lambda: transformers.OlmoeForCausalLM(
            transformers.OlmoeConfig(**TINY, intermediate_size=20, num_experts=5, num_experts_per_tok=2)
        ),
        torch.float16, LayerShape(32, 20, 5), RoutingRule(2, renormalize=False), (0, 1, 2),
    ),
}  # fmt: skip
STORAGES = ("one file", "indexed shards", "shards without index", "stacked")


def save(model: transformers.PreTrainedModel, directory: Path, storage: str) -> None:
    # 1 MB holds a whole tiny model; 12 KB cuts it, and its layers, into many files
    size = "12KB" if "shards" in storage else "1MB"
    model.save_pretrained(directory, max_shard_size=size, save_original_format=storage != "stacked")
    files = list(directory.glob("*.safetensors"))
    assert len(files) > 4 if "shards" in storage else len(files) == 1
    if storage == "shards without index":
        (directory / "model.safetensors.index.json").unlink()


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("architecture", MODELS)
def test_every_tensor_has_the_bits_of_transformers(architecture: str, storage: str, tmp_path: Path) -> None:
    expected = MODELS[architecture]
    torch.manual_seed(1)
    model = expected.make().to(expected.dtype)
    save(model, tmp_path, storage)

    checkpoint = Checkpoint.open(tmp_path)

    assert checkpoint.architecture == architecture
    assert checkpoint.name == tmp_path.name
    assert checkpoint.dtype == expected.dtype
    assert checkpoint.shape == expected.shape
    assert checkpoint.routing == expected.routing
    assert checkpoint.moe_layers == expected.moe_layers
    blocks = [layer.mlp for layer in model.model.layers]
    assert tuple(i for i, block in enumerate(blocks) if hasattr(block, "experts")) == expected.moe_layers
    for index in expected.moe_layers:
        layer, packed = checkpoint.layer(index), checkpoint.load(index, "cpu", expected.dtype)
        gate_up, down = blocks[index].experts.gate_up_proj, blocks[index].experts.down_proj
        intermediate = expected.shape.intermediate
        assert_same_bits(layer.router, blocks[index].gate.weight)
        assert len(layer.gates) == len(layer.ups) == len(layer.downs) == expected.shape.experts
        for expert in range(expected.shape.experts):
            assert_same_bits(layer.gates[expert], gate_up[expert, :intermediate])
            assert_same_bits(layer.ups[expert], gate_up[expert, intermediate:])
            assert_same_bits(layer.downs[expert], down[expert])
        assert packed.routing == expected.routing
        assert_same_bits(packed.router, blocks[index].gate.weight)
        assert_same_bits(packed.gate_up, gate_up)
        assert_same_bits(packed.down, down)


def assert_same_bits(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize("architecture", MODELS)
def test_routing_rule_is_that_of_transformers_router(architecture: str) -> None:
    torch.manual_seed(2)
    expected = MODELS[architecture]
    router = expected.make().float().model.layers[expected.moe_layers[0]].mlp.gate
    _, weights, chosen = router(torch.randn(50, expected.shape.hidden))
    assert chosen.shape == (50, expected.routing.top_k)
    sums = weights.sum(dim=-1)
    assert bool(((sums - 1).abs() < 1e-6).all()) == expected.routing.renormalize


@pytest.mark.parametrize(
    ("architecture", "config_type", "renormalize"),
    [
        ("MixtralForCausalLM", transformers.MixtralConfig, True),
        ("Qwen3MoeForCausalLM", transformers.Qwen3MoeConfig, False),
        ("OlmoeForCausalLM", transformers.OlmoeConfig, False),
    ],
)
def test_what_config_json_leaves_out_is_transformers_default(
    architecture: str, config_type: type[transformers.PreTrainedConfig], renormalize: bool, tmp_path: Path
) -> None:
    found = read_config(write_config(tmp_path, {"architectures": [architecture]}))
    default = config_type()
    assert default.hidden_act == "silu"
    intermediate = getattr(default, "moe_intermediate_size", default.intermediate_size)
    assert found.shape == LayerShape(default.hidden_size, intermediate, default.num_experts)
    assert found.routing == RoutingRule(default.num_experts_per_tok, renormalize)
    assert getattr(default, "norm_topk_prob", True) == renormalize
    assert found.moe_layers == tuple(range(default.num_hidden_layers))


@pytest.mark.parametrize("name", ["num_experts", "num_local_experts"])
@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "olmoe"])
def test_the_number_of_experts_has_two_names_as_in_transformers(name: str, model_type: str, tmp_path: Path) -> None:
    architecture = {"mixtral": "Mixtral", "qwen3_moe": "Qwen3Moe", "olmoe": "Olmoe"}[model_type] + "ForCausalLM"
    path = write_config(tmp_path, {"architectures": [architecture], "model_type": model_type, name: 11})
    assert transformers.AutoConfig.from_pretrained(tmp_path).num_experts == 11
    assert read_config(path).shape.experts == 11


@pytest.mark.parametrize(
    ("values", "moe_layers"),
    [
        ({"mlp_only_layers": None}, (0, 1, 2, 3)),
        ({"mlp_only_layers": [0, 2]}, (1, 3)),
        ({"decoder_sparse_step": 2}, (1, 3)),
        ({"decoder_sparse_step": 3}, (2,)),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [3]}, (1,)),
    ],
)
def test_qwen3_layers_with_experts(values: dict[str, object], moe_layers: tuple[int, ...], tmp_path: Path) -> None:
    common = {"architectures": ["Qwen3MoeForCausalLM"], "num_hidden_layers": 4}
    assert read_config(write_config(tmp_path, common | values)).moe_layers == moe_layers


def write_config(directory: Path, values: dict[str, object]) -> Path:
    path = directory / "config.json"
    path.write_text(json.dumps(values))
    return path


def test_loading_converts_to_the_dtype_asked_for(tmp_path: Path) -> None:
    write_demo_model(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    stored, loaded = checkpoint.layer(2), checkpoint.load(2, "cpu", torch.bfloat16)
    assert_same_bits(loaded.router, stored.router.to(torch.bfloat16))
    assert_same_bits(loaded.gate_up[5], torch.cat([stored.gates[5], stored.ups[5]]).to(torch.bfloat16))
    assert_same_bits(loaded.down[5], stored.downs[5].to(torch.bfloat16))


def test_one_file_goes_before_an_index_as_in_transformers(tmp_path: Path) -> None:
    write_demo_model(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    Checkpoint.open(tmp_path).check((0, 1, 2, 3))


def test_only_the_shards_of_the_layers_asked_for_need_to_be_there(tmp_path: Path) -> None:
    save(MODELS["MixtralForCausalLM"].make(), tmp_path, "indexed shards")
    weight_map = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {file for name, file in weight_map.items() if ".layers.1.block_sparse_moe." in name}
    for file in set(weight_map.values()) - needed:
        (tmp_path / file).unlink()
    Checkpoint.open(tmp_path).check((1,))


@pytest.mark.parametrize("storage", ["one file", "stacked"])
def test_views_lie_in_the_mapped_file_and_outlive_the_checkpoint(storage: str, tmp_path: Path) -> None:
    model = MODELS["OlmoeForCausalLM"].make()
    save(model, tmp_path, storage)
    layer = Checkpoint.open(tmp_path).layer(1)
    gc.collect()
    mapped = mapped_ranges(tmp_path / "model.safetensors")
    for view in (layer.router, *layer.gates, *layer.ups, *layer.downs):
        begin, end = view.data_ptr(), view.data_ptr() + view.nbytes
        assert any(first <= begin and end <= last for first, last in mapped), f"{begin:#x} is not in {mapped}"
    assert_same_bits(layer.downs[4], model.model.layers[1].mlp.experts.down_proj[4])


def test_a_write_to_a_view_does_not_reach_the_file(tmp_path: Path) -> None:
    write_demo_model(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    router = Checkpoint.open(tmp_path).layer(0).router
    router.fill_(7)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert not torch.equal(Checkpoint.open(tmp_path).layer(0).router, router)


def mapped_ranges(path: Path) -> list[tuple[int, int]]:
    """Address ranges of this process that map `path`."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    ranges = [line[0].split("-") for line in lines if line[-1] == str(path)]
    assert ranges, f"{path} is not mapped"
    return [(int(first, 16), int(last, 16)) for first, last in ranges]
