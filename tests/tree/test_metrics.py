"""What a scrape of a running tree says of the work that was done."""

from __future__ import annotations

import numpy as np
import torch
import tritonclient.http as triton_http
from scraped import Samples, metrics, value

from fdmoe_ops.chaos.tree import Tree

LAYER, TOP_K, TOKENS = "demo/layers.2", 2, 7


def of_the_layer(samples: Samples) -> dict[str, float]:
    """Tokens of each expert."""
    found = {}
    for (name, labels), tokens in samples.items():
        if name == "fdmoe_expert_tokens_total" and dict(labels)["layer"] == LAYER:
            found[dict(labels)["expert"]] = tokens
    return found


def test_tokens_of_the_experts_are_those_that_the_router_chose(tree: Tree, blocks: list[torch.nn.Module]) -> None:
    x = torch.randn(TOKENS, 64, generator=torch.Generator().manual_seed(11))
    before = metrics(tree, watchdog=True)
    tensor = triton_http.InferInput("hidden_states", [TOKENS, 64], "FP32")
    tensor.set_data_from_numpy(x.numpy())
    answer = triton_http.InferenceServerClient(tree.gateway_address).infer(LAYER, [tensor])
    assert answer.get_response()["parameters"]["fdmoe_path"] == "fused"
    with torch.no_grad():
        logits = x @ blocks[2].gate.weight.T
    chosen = logits.topk(TOP_K).indices.flatten().numpy()
    expected = np.bincount(chosen, minlength=logits.shape[1])
    start = of_the_layer(before) or dict.fromkeys(map(str, range(len(expected))), 0.0)
    # the worker reads the device's counts as soon as it has nothing else to do
    after = tree.wait_until(
        "the experts' tokens",
        lambda: (
            (now := metrics(tree, watchdog=True))
            and sum(of_the_layer(now).values()) - sum(start.values()) >= TOKENS * TOP_K
            and now
        ),
    )
    rise = [of_the_layer(after)[str(expert)] - start[str(expert)] for expert in range(len(expected))]
    assert rise == expected.tolist()
    labels = {"path": "fused", "bucket": "8"}
    name = "fdmoe_layer_duration_seconds_count"
    assert value(after, name, **labels) - value(before, name, **labels) == 1
    moved = "fdmoe_comm_bytes_total"
    assert value(after, moved, peer="local") > value(before, moved, peer="local")
