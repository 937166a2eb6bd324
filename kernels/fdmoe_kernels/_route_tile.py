"""The route tiles of the one-launch kernel: from a tile of tokens to entries in the experts' lists. Private.

An entry is (token, k), numbered token * (K + S) + k: the K chosen experts by rank, then the S shared ones.

    logits   [parts, T, E]      sums over parts of H, the router's bias not among them
    lists    [E + S, capacity]  the entries of each expert, in any order
    weights  [T, K + S]         of each entry; those of the router are still to be divided by norms[token]
    norms    [T]
"""

import triton
import triton.language as tl

from fdmoe_kernels import routing

LOWEST = tl.constexpr(routing.LOWEST)
NOTHING = tl.constexpr(float("-inf"))  # an expert that cannot be chosen, or has been
TAKEN = tl.constexpr(-(2**31))  # below the key of NOTHING
LOWEST_SUM = tl.constexpr(-3.4e38)  # of a group: two LOWEST are an infinity, which is below one LOWEST and not NOTHING


@triton.jit
def finite(values):
    """A NaN counts as the lowest and an infinity as the largest finite number: every token gets K distinct experts of
    0..E-1, so that no list can overflow, whatever the input."""
    return tl.where(values == values, tl.minimum(tl.maximum(values, LOWEST), -LOWEST), LOWEST)


@triton.jit
def sortable(bits):
    """The bits of floats as integers of the same order, and back."""
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


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
def part_of_logits(
    x, router, logits, tile, part, steps, T,
    H: tl.constexpr, E: tl.constexpr, TOKENS: tl.constexpr, EXPERTS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """logits[part, token, expert], the sum over `steps` steps of DEPTH: one CTA alone would read the router for longer
    than all of them need for the layer's first weights."""
    token = tile * TOKENS + tl.arange(0, TOKENS)
    expert = tl.arange(0, EXPERTS)
    depth = tl.arange(0, DEPTH)
    sums = tl.zeros((TOKENS, EXPERTS), tl.float32)
    first = part * steps * DEPTH
    for start in range(first, tl.minimum(first + steps * DEPTH, H), DEPTH):
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
        sums = tl.dot(a, b, sums, input_precision="ieee")
    row = part.to(tl.int64) * T + token
    tl.store(logits + row[:, None] * E + expert[None, :], sums, mask=(token < T)[:, None] & (expert < E)[None, :])


@triton.jit
def route_tile(
    logits, router_bias, correction_bias, lists, weights, norms, counts, first, parts, T, capacity,
    E: tl.constexpr, K: tl.constexpr, S: tl.constexpr,
    SIGMOID: tl.constexpr, RENORMALIZE: tl.constexpr, SCALING: tl.constexpr,
    GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr, GROUP_SCORES: tl.constexpr, GROUP_LANES: tl.constexpr,
    K_LANES: tl.constexpr, TOKENS: tl.constexpr, EXPERTS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """For TOKENS tokens from `first` on: the rule of routing.RoutingRule on the sum of the `parts` parts of the logits,
    PARTS at most, and K entries per token."""
    token = first + tl.arange(0, TOKENS)
    expert = tl.arange(0, EXPERTS)
    there = (token < T)[:, None] & (expert < E)[None, :]
    at = logits + token.to(tl.int64)[:, None] * E + expert[None, :]
    logits = tl.zeros((TOKENS, EXPERTS), tl.float32)
    for part in tl.static_range(PARTS):
        logits += tl.load(at + tl.cast(part, tl.int64) * T * E, mask=there & (part < parts), other=0.0)
    if router_bias is not None:
        logits += tl.load(router_bias + expert, mask=expert < E, other=0.0).to(tl.float32)[None, :]
    logits = tl.where((expert < E)[None, :], finite(logits), NOTHING)
    # scores without their common divisor: the K chosen ones are divided in the end
    if SIGMOID:
        scores = 1.0 / (1.0 + tl.exp(-logits))
        total = tl.full((TOKENS,), 1.0, tl.float32)
    else:
        highest = tl.max(logits, axis=1)
        scores = tl.exp(logits - highest[:, None])
        total = tl.sum(scores, axis=1)
    # softmax keeps the order of the logits, which still differ where scores round to the same number
    BY_LOGITS: tl.constexpr = correction_bias is None and not SIGMOID and (GROUPS == 1 or GROUP_SCORES == 1)
    if BY_LOGITS:
        choice = logits
    else:
        choice = scores / total[:, None]
        if correction_bias is not None:
            choice = finite(choice + tl.load(correction_bias + expert, mask=expert < E, other=0.0)[None, :])
        choice = tl.where((expert < E)[None, :], choice, NOTHING)
    if GROUPS > 1:
        choice = within_best_groups(choice, expert, E, GROUPS, TOP_GROUPS, GROUP_SCORES, GROUP_LANES)
    # integers, of which a warp finds the largest by one instruction; a negative zero is a zero, as in a comparison
    keys = sortable((choice + 0.0).to(tl.int32, bitcast=True))
    lane = tl.arange(0, K_LANES)
    chosen = tl.zeros((TOKENS, K_LANES), tl.int32)
    chosen_scores = tl.zeros((TOKENS, K_LANES), tl.float32)
    # K times, in a way that is not unrolled: a launch fetches its instructions for the first time
    for k in range(tl.minimum(K, T * K)):
        best = tl.max(keys, axis=1)
        index = tl.min(tl.where(keys == best[:, None], expert[None, :], EXPERTS), axis=1)
        here = expert[None, :] == index[:, None]
        if BY_LOGITS:
            score = tl.exp(sortable(best).to(tl.float32, bitcast=True) - highest)
        else:
            score = tl.sum(tl.where(here, scores, 0.0), axis=1)
        chosen = tl.where((lane == k)[None, :], index[:, None], chosen)
        chosen_scores = tl.where((lane == k)[None, :], score[:, None], chosen_scores)
        keys = tl.where(here, TAKEN, keys)
    entry = token[:, None] * (K + S) + lane[None, :]
    mask = (token < T)[:, None] & (lane < K)[None, :]
    # all at once: an atomic whose result is needed takes a microsecond
    enter(lists, counts, chosen, entry, capacity, mask)
    tl.store(weights + entry, chosen_scores, mask=mask)
    if RENORMALIZE:
        total = tl.sum(chosen_scores, axis=1) + 1e-20 * total  # of scores that are not divided by their total yet
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
    same = experts[:, :, None] == experts[:, None, :]
    earlier = tl.sum((same & (lane[None, :] < lane[:, None])[None, :, :]).to(tl.int32), axis=2)
    weight = tl.sum(tl.where(same, all_weights[:, None, :], 0.0), axis=2)
    live = mask & (experts >= 0) & (experts < E) & (earlier == 0) & (weight != 0.0)
    entry = token[:, None] * (K + S) + lane[None, :]
    enter(lists, counts, experts.to(tl.int32), entry, capacity, live)
    tl.store(weights + entry, tl.where(live, weight, 0.0), mask=mask)


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
