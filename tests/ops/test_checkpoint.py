"""Layers read from a checkpoint against the modules of transformers that saved it."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
import torch
import transformers
from moe_layers import Place, layer_of_block
from tiny_models import MODELS, STORAGES, randomized, save

from fdmoe_kernels.activation import SwiGLU
from fdmoe_kernels.routing import RoutingRule, Scores, choose
from fdmoe_ops.checkpoint import Checkpoint, LayerShape
from fdmoe_ops.checkpoint.config import read_config
from fdmoe_ops.demo import write_demo_model


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("architecture", MODELS)
def test_every_tensor_has_the_bits_of_transformers(architecture: str, storage: str, tmp_path: Path) -> None:
    expected = MODELS[architecture]
    torch.manual_seed(1)
    model = randomized(expected.make()).to(expected.dtype)
    blocks = [layer.mlp for layer in model.model.layers]
    # the correction of the choice stays in float32, in the module and in the file
    corrections = {i: b.gate.e_score_correction_bias for i, b in enumerate(blocks) if is_corrected(b)}
    for index, correction in corrections.items():
        blocks[index].gate.e_score_correction_bias = correction.float() + torch.rand(len(correction)) * 1e-4
    save(model, tmp_path, storage)

    checkpoint = Checkpoint.open(tmp_path)

    assert checkpoint.architecture == architecture
    assert checkpoint.name == tmp_path.name
    assert checkpoint.dtype == expected.dtype
    assert checkpoint.shape == expected.shape
    assert checkpoint.routing == expected.routing
    assert checkpoint.moe_layers == expected.moe_layers
    assert tuple(i for i, block in enumerate(blocks) if hasattr(block, "experts")) == expected.moe_layers
    for index in expected.moe_layers:
        layer, packed = checkpoint.layer(index), checkpoint.load(index, "cpu", expected.dtype)
        block = layer_of_block(blocks[index], expected.routing, Place("cpu", expected.dtype, 0.0, ()))
        intermediate = expected.shape.intermediate
        assert_same_bits(layer.router, block.router)
        assert len(layer.gates) == len(layer.ups) == len(layer.downs) == expected.shape.experts
        for expert in range(expected.shape.experts):
            assert_same_bits(layer.gates[expert], block.gate_up[expert, :intermediate])
            assert_same_bits(layer.ups[expert], block.gate_up[expert, intermediate:])
            assert_same_bits(layer.downs[expert], block.down[expert])
        assert packed.routing == expected.routing
        assert packed.activation == block.activation == expected.activation
        assert packed.shared_experts == block.shared_experts == -(-expected.shape.shared // intermediate)
        assert packed.tensors.keys() == block.tensors.keys()
        for name, tensor in packed.tensors.items():
            assert_same_bits(tensor, block.tensors[name])


def is_corrected(block: torch.nn.Module) -> bool:
    return hasattr(block, "gate") and hasattr(block.gate, "e_score_correction_bias")


def assert_same_bits(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize("architecture", MODELS)
def test_routing_rule_is_that_of_transformers_router(architecture: str) -> None:
    torch.manual_seed(2)
    expected = MODELS[architecture]
    block = randomized(expected.make()).float().model.layers[expected.moe_layers[0]].mlp
    router = block.gate if hasattr(block, "gate") else block.router
    x = torch.randn(50, expected.shape.hidden)
    _, weights, chosen = router(x)
    layer = layer_of_block(block, expected.routing, Place("cpu", torch.float32, 0.0, ()))
    ours = choose(torch.nn.functional.linear(x, layer.router, layer.router_bias), layer.routing, layer.correction_bias)
    # transformers leaves the order of the chosen open
    assert torch.equal(chosen.sort(dim=1).values, ours.experts.sort(dim=1).values)
    by_expert = torch.zeros(2, 50, expected.shape.experts)
    by_expert[0].scatter_(1, chosen, weights)
    by_expert[1].scatter_(1, ours.experts, ours.weights)
    assert torch.allclose(by_expert[0], by_expert[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "config_type", "routing", "shared", "first"),
    [
        ("MixtralForCausalLM", transformers.MixtralConfig, RoutingRule(2, True), 0, 0),
        ("Qwen3MoeForCausalLM", transformers.Qwen3MoeConfig, RoutingRule(8, False), 0, 0),
        ("OlmoeForCausalLM", transformers.OlmoeConfig, RoutingRule(8, False), 0, 0),
        ("Qwen2MoeForCausalLM", transformers.Qwen2MoeConfig, RoutingRule(4, False), 5632, 0),
        ("Qwen3NextForCausalLM", transformers.Qwen3NextConfig, RoutingRule(10, True), 512, 0),
        ("DeepseekV2ForCausalLM", transformers.DeepseekV2Config, RoutingRule(6, False), 2 * 1407, 0),
        (
            "DeepseekV3ForCausalLM", transformers.DeepseekV3Config,
            RoutingRule(8, True, Scores.SIGMOID, groups=8, top_groups=4, group_scores=2, scaling=2.5), 2048, 3,
        ),
        ("Glm4MoeForCausalLM", transformers.Glm4MoeConfig, RoutingRule(8, True, Scores.SIGMOID), 1408, 1),
        ("GptOssForCausalLM", transformers.GptOssConfig, RoutingRule(4, True), 0, 0),
    ],
)  # fmt: skip
def test_what_config_json_leaves_out_is_transformers_default(
    architecture: str, config_type: type[transformers.PreTrainedConfig], routing: RoutingRule, shared: int, first: int,
    tmp_path: Path,
) -> None:  # fmt: skip
    # DeepSeek-V2 alone has no default for the number chosen
    needed = {"num_experts_per_tok": 6} if architecture == "DeepseekV2ForCausalLM" else {}
    found = read_config(write_config(tmp_path, {"architectures": [architecture], **needed}))
    default = config_type(**needed)
    assert default.hidden_act == "silu"
    intermediate = getattr(default, "moe_intermediate_size", default.intermediate_size)
    experts = default.n_routed_experts if hasattr(default, "n_routed_experts") else default.num_experts
    assert found.shape == LayerShape(default.hidden_size, intermediate, experts, shared)
    assert getattr(default, "shared_expert_intermediate_size", shared) == shared
    assert getattr(default, "n_shared_experts", shared // intermediate) * intermediate in (shared, 0)
    assert found.routing == routing
    assert default.num_experts_per_tok == routing.top_k
    assert getattr(default, "norm_topk_prob", True) == routing.renormalize
    assert getattr(default, "routed_scaling_factor", 1.0) == routing.scaling
    assert (getattr(default, "n_group", None) or 1, getattr(default, "topk_group", None) or 1) == (
        routing.groups, routing.top_groups,
    )  # fmt: skip
    assert found.moe_layers == tuple(range(first, default.num_hidden_layers))
    assert getattr(default, "first_k_dense_replace", 0) == first
    if architecture == "GptOssForCausalLM":
        assert found.activation == SwiGLU(default.swiglu_alpha, default.swiglu_limit, 1.0)


@pytest.mark.parametrize("name", ["num_experts", "num_local_experts"])
@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "olmoe", "gpt_oss"])
def test_the_number_of_experts_has_two_names_as_in_transformers(name: str, model_type: str, tmp_path: Path) -> None:
    architecture = {"mixtral": "Mixtral", "qwen3_moe": "Qwen3Moe", "olmoe": "Olmoe", "gpt_oss": "GptOss"}[
        model_type
    ] + "ForCausalLM"
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
