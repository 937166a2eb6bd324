"""What a worker does with a layer before it serves: compile, load, prove right, prove stoppable.

A first use beside a kernel that does not end blocks for ever, because its module must be loaded: so everything a worker
may ever launch is launched here once.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable

import torch

from fdmoe_kernels import _fused_kernel as kernel
from fdmoe_kernels.baseline import baseline_moe
from fdmoe_kernels.comparing import ROW_FACTOR, compare, tolerance
from fdmoe_kernels.faults import Fault
from fdmoe_kernels.fused import fused_moe
from fdmoe_kernels.layer import MoELayer
from fdmoe_kernels.routing import Routing
from fdmoe_kernels.tiles import Precision, token_counts_of_all_rows
from fdmoe_kernels.workspace import Workspace
from fdmoe_watchdog.page import FIRST_SLOT, LINE_WORDS, Exit, ExitWord, SlotWord

# a stalled launch waits within milliseconds, and later where neighbours have the device; the waits of one that goes on
# are shorter than the second, but for those where neighbours have it
_STALLS_WITHIN_S = 10.0
_STANDS_STILL_S, _MOST_LOOKS = 0.002, 50


class ProofError(RuntimeError):
    """The fused path of this layer cannot be trusted on this device; the message says what was found."""


def first_of_each_kind(layers: Iterable[MoELayer]) -> list[MoELayer]:
    """Of layers of one shape those whose builds no earlier one has: they differ by what a layer has, and its rules."""
    kinds: dict[object, MoELayer] = {}
    for layer in layers:
        aligned = tuple(address % 16 == 0 for address in layer.addresses)
        kinds.setdefault((tuple(layer.tensors), aligned, layer.routing, layer.activation), layer)
    return list(kinds.values())


def warm_up_all(layers: Collection[MoELayer], workspace: Workspace) -> float:
    """`warm_up` of the first layer of each kind. The others, which launch the same builds, are proven at one token
    count of each form of the kernel: so a model's number of layers does not make a start much longer.

    Returns the largest difference; raises as `warm_up` does.
    """
    firsts = first_of_each_kind(layers)
    worst = [warm_up(layer, workspace) for layer in firsts]
    counts = _token_count_of_each_form(workspace)
    others = (layer for layer in layers if layer not in firsts)
    worst += [_prove_at(counts, layer, workspace) for layer in others]
    return max(worst)


def warm_up(
    layer: MoELayer, workspace: Workspace, *, precision: Precision = "ieee", given: Collection[torch.dtype] = ()
) -> float:
    """Run both paths over every row of the tuning tables, and every form of the kernel; returns the largest difference
    between them.

    `given` names the dtypes of the experts in routings made elsewhere that will be served (torch.int32, torch.int64):
    each is a build of its own, beside that of the layer's own router, as another `precision` is.

    Raises ProofError if the difference is above the tolerance of the layer's dtype.
    """
    counts = {*token_counts_of_all_rows(layer, workspace.max_tokens, precision), *_token_count_of_each_form(workspace)}
    return _prove_at(counts, layer, workspace, precision=precision, given=given)


def _prove_at(
    counts: Collection[int], layer: MoELayer, workspace: Workspace, *,
    precision: Precision = "ieee", given: Collection[torch.dtype] = (),
) -> float:  # fmt: skip
    """The largest difference of the paths at these token counts."""
    generator = torch.Generator(device=layer.device).manual_seed(0)
    worst = 0.0
    for tokens in sorted(counts):
        x = torch.empty(tokens, layer.hidden_size, dtype=layer.dtype, device=layer.device).normal_(generator=generator)
        worst = max(worst, _prove(x, layer, workspace, precision=precision))
        for dtype in given:
            routing = spread(tokens, layer, dtype)
            worst = max(worst, _prove(x, layer, workspace, precision=precision, routing=routing))
    return worst


def spread(tokens: int, layer: MoELayer, dtype: torch.dtype) -> Routing:
    """A routing over all experts by turns, with equal weights."""
    top_k = layer.routing.top_k
    entries = torch.arange(tokens * top_k, device=layer.device).view(tokens, top_k)
    return Routing((entries % layer.experts).to(dtype), torch.full(entries.shape, 1 / top_k, device=layer.device))


def _prove(
    x: torch.Tensor, layer: MoELayer, workspace: Workspace, *,
    precision: Precision = "ieee", routing: Routing | None = None,
) -> float:  # fmt: skip
    fused = fused_moe(x, layer, workspace, precision=precision, routing=routing)
    baseline = baseline_moe(x, layer, routing=routing)
    found = compare(fused, baseline, x, layer, precision=precision, routed=routing is None)
    allowed = tolerance(layer.dtype, precision)
    where = f"at {x.shape[0]} tokens; {allowed:.0e} is allowed for {layer.dtype}, {precision}"
    if found.rows == 0:
        raise ProofError(f"no row can be compared, for none of the baseline's is finite and no close call {where}")
    if not found.within(allowed):
        raise ProofError(
            f"the paths differ by {found.whole:.2e}, in one row by {found.row:.2e}, {where}, and {ROW_FACTOR:g} times "
            "that in one row"
        )
    return found.whole


def _token_count_of_each_form(workspace: Workspace) -> list[int]:
    """One token and the most, and where the Hopper form serves some counts, two and the first that it serves: among
    them is every form of the kernel that the workspace uses, and each way it reads weights."""
    hopper = workspace.hopper
    small = set() if hopper is None else {min(tokens, workspace.max_tokens) for tokens in (2, hopper.fewest_tokens)}
    return sorted({1, workspace.max_tokens} | small)


def abort_drill(layer: MoELayer, workspace: Workspace) -> float:
    """Start a launch that stalls, tell it to end once it waits for what never comes, see it end by itself and the next
    launch be right; the same for every form of the kernel that may serve. Triton's interpreter, which returns when the
    launch is over, has it told before it starts.

    Returns the longest time from the word to the end, s. Raises ProofError for a launch that does not begin to wait, or
    does not end as aborted, and ValueError without a page. One that does not end at all is the start-up deadline's to
    find.
    """
    page = workspace.page
    if page is None:
        raise ValueError("the workspace has no page; an abort word is needed")
    counts = _token_count_of_each_form(workspace)
    rows = (torch.ones(tokens, layer.hidden_size, dtype=layer.dtype, device=layer.device) for tokens in counts)
    return max(_drill(x, layer, workspace, page) for x in rows)


def _drill(x: torch.Tensor, layer: MoELayer, workspace: Workspace, page: torch.Tensor) -> float:
    launch, began = workspace.launches + 1, time.monotonic()
    if layer.device.type == "cuda":
        fused_moe(x, layer, workspace, fault=Fault.STALL)
        _wait_until_it_stands_still(launch, page)
        began = time.monotonic()
        page[kernel.PAGE_ABORT.value] = launch
        torch.cuda.synchronize(layer.device)
    else:
        page[kernel.PAGE_ABORT.value] = launch
        fused_moe(x, layer, workspace, fault=Fault.STALL)
    seconds = time.monotonic() - began
    found = int(page[kernel.PAGE_EXIT.value + ExitWord.EXIT])
    page[kernel.PAGE_ABORT.value] = 0
    if found != launch << 8 | Exit.ABORTED:
        raise ProofError(f"launch {launch} was told to end and left exit word {found:#x}")
    _prove(x, layer, workspace)
    return seconds


def _wait_until_it_stands_still(launch: int, page: torch.Tensor) -> None:
    """Until a CTA of this launch says that it waits, and none says anything else, or nothing better comes of it. A
    launch that does not come to that, or ends, is told to end, and is a ProofError."""
    slots = page[FIRST_SLOT * LINE_WORDS :].view(-1, LINE_WORDS)
    deadline, last, looks = time.monotonic() + _STALLS_WITHIN_S, torch.zeros_like(slots), 0
    while True:
        now = slots.clone()
        waits = bool(((now[:, SlotWord.LAUNCH] == launch) & (now[:, SlotWord.WAIT] != 0)).any())
        looks = looks + 1 if waits else 0
        if waits and (torch.equal(now, last) or looks == _MOST_LOOKS):
            return
        ended = int(page[kernel.PAGE_EXIT.value + ExitWord.ENDED]) >= launch
        if ended or time.monotonic() > deadline:
            page[kernel.PAGE_ABORT.value] = launch
            found = "ended" if ended else f"does not wait after {_STALLS_WITHIN_S:g} s"
            raise ProofError(f"launch {launch} was to stall, and {found}")
        last = now
        time.sleep(_STANDS_STILL_S)


def load_faults(layer: MoELayer, workspace: Workspace) -> None:
    """Compile and load the builds that chaos may ask for; Triton's interpreter has none. ENDLESS ends here, and ILLEGAL
    stores nothing, for their tile finds NEVER already set; STALL is the drill's."""
    if layer.device.type == "cpu":
        return
    workspace.control[kernel.NEVER.value] = 1
    for tokens in _token_count_of_each_form(workspace):
        x = torch.ones(tokens, layer.hidden_size, dtype=layer.dtype, device=layer.device)
        for fault in (Fault.ENDLESS, Fault.NAN, Fault.WRONG, Fault.SLOW, Fault.ILLEGAL):
            fused_moe(x, layer, workspace, fault=fault)
    workspace.control[kernel.NEVER.value] = 0
