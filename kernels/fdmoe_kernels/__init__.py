"""A mixture-of-experts layer in one kernel launch, its torch baseline and its float32 reference."""

from fdmoe_kernels.baseline import baseline_moe
from fdmoe_kernels.fused import Fault, fused_moe, warm_up
from fdmoe_kernels.layer import MoELayer, RoutingRule
from fdmoe_kernels.reference import reference_moe
from fdmoe_kernels.workspace import Workspace

__all__ = ["Fault", "MoELayer", "RoutingRule", "Workspace", "baseline_moe", "fused_moe", "reference_moe", "warm_up"]
