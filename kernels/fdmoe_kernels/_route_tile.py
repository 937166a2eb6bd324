"""The route tiles of the one-launch kernel: from a tile of tokens to entries in the experts' lists. Private.

An entry is (token, k), numbered token * (K + S) + k: the K chosen experts by rank, then the S shared ones.

    lists    [E + S, capacity]  the entries of each expert, in any order
    weights  [T, K + S]         of each entry; those of the router are still to be divided by norms[token]
    norms    [T]
"""

import triton
import triton.language as tl

from fdmoe_kernels import routing

LOWEST = tl.constexpr(routing.LOWEST)
NOTHING = tl.constexpr(float("-inf"))  # an expert that cannot be chosen, or has been
LOWEST_SUM = tl.constexpr(-3.4e38)  # of a group: two LOWEST are an infinity, which is below one LOWEST and not NOTHING


@triton.jit
def finite(values):
    """A NaN counts as the lowest and an infinity as the largest finite number: every token gets K distinct experts of
    0..E-1, so that no list can overflow, whatever the input."""
    return tl.where(values == values, tl.minimum(tl.maximum(values, LOWEST), -LOWEST), LOWEST)


@triton.jit
def enter(lists, counts, expert, entry, capacity, mask):
    """Append each entry to its expert's list."""
    place = tl.atomic_add(counts + expert, 1, mask=mask, sem="relaxed")
    tl.store(lists + expert.to(tl.int64) * capacity + place, entry, mask=mask)


@triton.jit
def within_best_groups(
    choice, expert, E: tl.constexpr, GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr, GROUP_SCORES: tl.constexpr,
    GROUP_LANES: tl.constexpr,
):  # fmt: skip
    """`choice` [tokens, experts], with NOTHING for the experts outside the TOP_GROUPS best of the GROUPS groups."""
    SIZE: tl.constexpr = E // GROUPS
    group = tl.arange(0, GROUP_LANES)
    scores = tl.full((choice.shape[0], GROUP_LANES), NOTHING, tl.float32)
    for g in tl.static_range(GROUPS):
        members = tl.where((expert // SIZE == g)[None, :], choice, NOTHING)
        score = tl.zeros((choice.shape[0],), tl.float32)
        for rank in tl.static_range(GROUP_SCORES):
            best, index = tl.max(members, axis=1, return_indices=True, return_indices_tie_break_left=True)
            score += best
            if rank + 1 < GROUP_SCORES:
                members = tl.where(expert[None, :] == index[:, None], NOTHING, members)
        scores = tl.where((group == g)[None, :], tl.maximum(score, LOWEST_SUM)[:, None], scores)
    result = tl.full(choice.shape, NOTHING, tl.float32)
    for _ in tl.static_range(TOP_GROUPS):
        best, index = tl.max(scores, axis=1, return_indices=True, return_indices_tie_break_left=True)
        result = tl.where((expert // SIZE)[None, :] == index[:, None], choice, result)
        scores = tl.where(group[None, :] == index[:, None], NOTHING, scores)
    return result


@triton.jit
def route_tile(
    x, router, router_bias, correction_bias, lists, weights, norms, counts, tile, T, capacity,
    H: tl.constexpr, E: tl.constexpr, K: tl.constexpr, S: tl.constexpr,
    SIGMOID: tl.constexpr, RENORMALIZE: tl.constexpr, SCALING: tl.constexpr,
    GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr, GROUP_SCORES: tl.constexpr, GROUP_LANES: tl.constexpr,
    TOKENS: tl.constexpr, EXPERTS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Logits, the rule of routing.RoutingRule, and K entries per token."""
    token = tile * TOKENS + tl.arange(0, TOKENS)
    expert = tl.arange(0, EXPERTS)
    depth = tl.arange(0, DEPTH)
    logits = tl.zeros((TOKENS, EXPERTS), tl.float32)
    for start in range(0, H, DEPTH):
        inside = start + depth < H
        a = tl.load(
            x + token[:, None].to(tl.int64) * H + (start + depth)[None, :],
            mask=(token < T)[:, None] & inside[None, :], other=0.0,
        )  # fmt: skip
        b = tl.load(
            router + expert[None, :].to(tl.int64) * H + (start + depth)[:, None],
            mask=(expert < E)[None, :] & inside[:, None], other=0.0,
        )  # fmt: skip
        # whatever the precision of the experts: tf32 would choose other ones
        logits = tl.dot(a, b, logits, input_precision="ieee")
    if router_bias is not None:
        logits += tl.load(router_bias + expert, mask=expert < E, other=0.0).to(tl.float32)[None, :]
    logits = tl.where((expert < E)[None, :], finite(logits), NOTHING)
    highest = tl.max(logits, axis=1)
    total = tl.full((TOKENS,), 1.0, tl.float32)
    # the order of softmax scores is the order of the logits, and exp of the few chosen ones is all that is needed then
    BY_LOGITS: tl.constexpr = correction_bias is None and not SIGMOID and (GROUPS == 1 or GROUP_SCORES == 1)
    if BY_LOGITS:
        scores = logits
        choice = logits
        total = tl.sum(tl.exp(logits - highest[:, None]), axis=1)
    else:
        if SIGMOID:
            scores = 1.0 / (1.0 + tl.exp(-logits))
        else:
            scores = tl.exp(logits - highest[:, None])
            scores = scores / tl.sum(scores, axis=1)[:, None]
        choice = scores
        if correction_bias is not None:
            choice = finite(scores + tl.load(correction_bias + expert, mask=expert < E, other=0.0)[None, :])
        choice = tl.where((expert < E)[None, :], choice, NOTHING)
    if GROUPS > 1:
        choice = within_best_groups(choice, expert, E, GROUPS, TOP_GROUPS, GROUP_SCORES, GROUP_LANES)
    chosen_total = tl.zeros((TOKENS,), tl.float32)
    for k in tl.static_range(K):
        value, index = tl.max(choice, axis=1, return_indices=True, return_indices_tie_break_left=True)
        here = expert[None, :] == index[:, None]
        if BY_LOGITS:
            weight = tl.exp(value - highest)
        else:
            weight = tl.sum(tl.where(here, scores, 0.0), axis=1)
        chosen_total += weight
        entry = token * (K + S) + k
        tl.store(weights + entry, weight, mask=token < T)
        enter(lists, counts, index, entry, capacity, token < T)
        choice = tl.where(here, NOTHING, choice)
    if RENORMALIZE:
        total = chosen_total + 1e-20 * total  # of scores that are not divided by their total yet
    tl.store(norms + token, total / SCALING, mask=token < T)


@triton.jit
def given_tile(
    chosen, given, lists, weights, counts, tile, T, capacity,
    E: tl.constexpr, K: tl.constexpr, S: tl.constexpr, K_LANES: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """The entries of a routing made elsewhere: `chosen` experts and `given` weights, [T, K].

    Only the first entry of an expert that a token names more than once is entered, with the sum of the weights: a list
    has room for each token once. An entry that is not entered gets the weight 0, and combine does not read its part.
    """
    token = tile * TOKENS + tl.arange(0, TOKENS)
    lane = tl.arange(0, K_LANES)
    place = token.to(tl.int64)[:, None] * K + lane[None, :]
    mask = (token < T)[:, None] & (lane < K)[None, :]
    experts = tl.load(chosen + place, mask=mask, other=-1)
    all_weights = tl.load(given + place, mask=mask, other=0.0)
    for k in tl.static_range(K):
        expert = tl.load(chosen + token.to(tl.int64) * K + k, mask=token < T, other=-1)
        same = experts == expert[:, None]
        earlier = tl.sum((same & (lane < k)[None, :]).to(tl.int32), axis=1)
        weight = tl.sum(tl.where(same, all_weights, 0.0), axis=1)
        live = (token < T) & (expert >= 0) & (expert < E) & (earlier == 0) & (weight != 0.0)
        entry = token * (K + S) + k
        tl.store(weights + entry, tl.where(live, weight, 0.0), mask=token < T)
        enter(lists, counts, expert.to(tl.int32), entry, capacity, live)


@triton.jit
def shared_tile(
    x, shared_gate, lists, weights, counts, tile, T, capacity,
    H: tl.constexpr, E: tl.constexpr, K: tl.constexpr, S: tl.constexpr, TOKENS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Enter every token in the lists of the S shared experts."""
    token = tile * TOKENS + tl.arange(0, TOKENS)
    weight = tl.full((TOKENS,), 1.0, tl.float32)
    if shared_gate is not None:
        depth = tl.arange(0, DEPTH)
        products = tl.zeros((TOKENS, DEPTH), tl.float32)
        for start in range(0, H, DEPTH):
            inside = start + depth < H
            a = tl.load(
                x + token[:, None].to(tl.int64) * H + (start + depth)[None, :],
                mask=(token < T)[:, None] & inside[None, :], other=0.0,
            )  # fmt: skip
            gate = tl.load(shared_gate + start + depth, mask=inside, other=0.0)
            products += a.to(tl.float32) * gate.to(tl.float32)[None, :]
        weight = 1.0 / (1.0 + tl.exp(-tl.sum(products, axis=1)))
    for s in tl.static_range(S):
        entry = token * (K + S) + K + s
        tl.store(weights + entry, weight, mask=token < T)
        tl.store(lists + tl.cast(E + s, tl.int64) * capacity + token, entry, mask=token < T)
        tl.atomic_add(counts + E + s, tl.minimum(T - tile * TOKENS, TOKENS), sem="relaxed")
