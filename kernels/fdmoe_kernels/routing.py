"""How router logits become experts and weights, as a rule and as torch computes it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import torch

# NaN counts as this, an infinity as its negative, here and in the kernel: then every token gets K distinct experts
LOWEST = -3.0e38


class Scores(StrEnum):
    """What a router's logits are turned into: softmax over all E of a token, or sigmoid of each by itself."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


@dataclass(frozen=True, slots=True)
class RoutingRule:
    """How the logits of a token, x @ router^T (+ router_bias), become K experts and their weights. All in float32.

    scores   softmax over the E logits, or sigmoid of each
    choice   scores (+ correction_bias, which serves the choice alone)
    groups   with more than 1, the E experts are that many equal groups of neighbours. A group's score is the sum of its
             `group_scores` best choices; only experts of the `top_groups` best groups are eligible
    experts  the `top_k` eligible ones of the best choice, best first
    weights  their scores; divided by their sum + 1e-20 if `renormalize`; times `scaling`

    Ties go to the lower index, of groups and of experts. Softmax keeps the order of the logits: where the choice is the
    bare softmax of one expert at a time it is made on the logits, which still differ where scores round to the same
    number. A NaN counts as the lowest logit (choice, group score) and an infinity as the largest finite one.

    Softmax over the K best logits alone (Mixtral, gpt-oss) is softmax over all, then the K best, with `renormalize`:
    the sum over all E is divided out. DeepSeek-V2's group_limited_greedy is `group_scores` = 1 and DeepSeek-V3's
    `group_scores` = 2. DeepSeek-V2 gives the experts of other groups the score 0 and DeepSeek-V3 the choice -inf; a
    choice of K experts out of the eligible ones is the same for both, since softmax scores are above 0.

    Raises ValueError for a number out of its range, and for a count that is no int; `check` does so for numbers that do
    not fit the experts.
    """

    top_k: int
    renormalize: bool
    scores: Scores = Scores.SOFTMAX
    groups: int = 1
    top_groups: int = 1
    group_scores: int = 1
    scaling: float = 1.0

    def __post_init__(self) -> None:
        for name in ("top_k", "groups", "top_groups", "group_scores"):
            if not isinstance(getattr(self, name), int):
                raise ValueError(f"{name} is {getattr(self, name)!r}; an int is needed")
        if self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; at least 1 expert is chosen per token")
        if self.groups < 1:
            raise ValueError(f"groups is {self.groups}; at least 1 is needed")
        if not 1 <= self.top_groups <= self.groups:
            raise ValueError(f"top_groups is {self.top_groups}; 1 to {self.groups}, the number of groups, is allowed")
        if self.group_scores < 1:
            raise ValueError(f"group_scores is {self.group_scores}; at least 1 is needed")
        if not 0 < self.scaling < math.inf:
            raise ValueError(f"scaling is {self.scaling}; a finite number above 0 is needed")
        if self.scores not in tuple(Scores):
            allowed = " or ".join(repr(scores.value) for scores in Scores)
            raise ValueError(f"scores is {self.scores!r}; {allowed} is allowed")
        object.__setattr__(self, "scores", Scores(self.scores))

    def check(self, experts: int) -> None:
        """Raises ValueError unless K of `experts` experts can be chosen by this rule."""
        if self.top_k > experts:
            raise ValueError(f"top_k is {self.top_k}; the layer has {experts} experts")
        if self.groups == 1:
            return
        size = experts // self.groups
        if experts % self.groups:
            raise ValueError(f"groups is {self.groups}; a divisor of {experts}, the number of experts, is needed")
        if self.group_scores > size:
            raise ValueError(f"group_scores is {self.group_scores}; a group has {size} experts")
        if self.top_k > self.top_groups * size:
            raise ValueError(
                f"top_k is {self.top_k}; the {self.top_groups} best groups have {self.top_groups * size} experts"
            )

    @property
    def by_logits(self) -> bool:
        """Whether, without a correction bias, the choice can be made on the logits themselves."""
        return self.scores is Scores.SOFTMAX and (self.groups == 1 or self.group_scores == 1)


@dataclass(frozen=True, slots=True)
class Routing:
    """A routing made elsewhere, for models that route themselves: `experts` [T, K] int32 or int64 and `weights` [T, K]
    float32, both contiguous.

    The weights are taken as they are: nothing of the routing rule but K applies. An entry whose expert is not one of
    0..E-1, or whose weight is 0, contributes nothing and is not computed. An expert that a token names twice is
    computed once, with the sum of the weights.
    """

    experts: torch.Tensor
    weights: torch.Tensor

    def check(self, tokens: int, top_k: int, device: torch.device) -> None:
        """Raises ValueError unless this is a routing of `tokens` tokens to `top_k` experts each, on `device`."""
        for name, tensor, dtypes in (
            ("experts", self.experts, (torch.int32, torch.int64)),
            ("weights", self.weights, (torch.float32,)),
        ):
            if tuple(tensor.shape) != (tokens, top_k):
                raise ValueError(f"routing.{name} has shape {tuple(tensor.shape)}; [{tokens}, {top_k}] is needed")
            if tensor.dtype not in dtypes:
                raise ValueError(f"routing.{name} is {tensor.dtype}; {' or '.join(map(str, dtypes))} is needed")
            if tensor.device != device:
                raise ValueError(f"routing.{name} is on {tensor.device}; the layer is on {device}")
            if not tensor.is_contiguous():
                raise ValueError(f"routing.{name} has strides {tensor.stride()}; a contiguous tensor is needed")


def choose(logits: torch.Tensor, rule: RoutingRule, correction_bias: torch.Tensor | None = None) -> Routing:
    """The rule as torch operations: logits [T, E] float32 to a Routing (int64). Runs without a synchronisation."""
    logits = torch.nan_to_num(logits, nan=LOWEST).clamp(LOWEST, -LOWEST)
    scores = torch.sigmoid(logits) if rule.scores is Scores.SIGMOID else torch.softmax(logits, dim=-1)
    if correction_bias is not None:
        choice = torch.nan_to_num(scores + correction_bias, nan=LOWEST).clamp(LOWEST, -LOWEST)
    else:
        choice = logits if rule.by_logits else scores
    if rule.groups > 1:
        size = logits.shape[-1] // rule.groups
        best = choice.view(-1, rule.groups, size).topk(rule.group_scores, dim=-1).values.sum(dim=-1)
        rank = best.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        eligible = (rank < rule.top_groups).repeat_interleave(size, dim=-1)
        choice = choice.masked_fill(~eligible, float("-inf"))
    # a stable sort and not topk: topk promises nothing about ties
    experts = choice.sort(dim=-1, descending=True, stable=True).indices[:, : rule.top_k].contiguous()
    weights = scores.gather(-1, experts)
    if rule.renormalize:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    return Routing(experts, weights * rule.scaling)
