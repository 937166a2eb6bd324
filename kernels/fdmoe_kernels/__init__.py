"""A mixture-of-experts layer in one kernel launch, its torch baseline and its float32 reference."""

from fdmoe_kernels.activation import SwiGLU
from fdmoe_kernels.baseline import baseline_moe
from fdmoe_kernels.faults import Fault
from fdmoe_kernels.fused import fused_moe
from fdmoe_kernels.hopper.driver import BuildError
from fdmoe_kernels.layer import MoELayer
from fdmoe_kernels.module import FusedMoE
from fdmoe_kernels.reference import reference_moe
from fdmoe_kernels.routing import Routing, RoutingRule, Scores
from fdmoe_kernels.warmup import ProofError, abort_drill, warm_up
from fdmoe_kernels.workspace import Workspace

__all__ = [
    "BuildError",
    "Fault",
    "FusedMoE",
    "MoELayer",
    "ProofError",
    "Routing",
    "RoutingRule",
    "Scores",
    "SwiGLU",
    "Workspace",
    "abort_drill",
    "baseline_moe",
    "fused_moe",
    "reference_moe",
    "warm_up",
]
