"""The metrics of a running tree, as a scraper gets them."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from fdmoe_ops.chaos.tree import Tree

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def metrics(tree: Tree, *, watchdog: bool) -> Samples:
    status, body = tree.get("/metrics", watchdog=watchdog)
    assert status == 200
    families = text_string_to_metric_families(body.decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, frozenset(labels.items())), 0.0)
