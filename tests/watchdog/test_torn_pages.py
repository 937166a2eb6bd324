"""Whatever its writers are just doing, a reader never concludes what cannot be.

Each store of a word is whole, and a writer's lines come in its own order; the words of a line that a CTA stores come in
any order, because they are one instruction of several lanes. A reading loads from the first word to the last, as pread
copies, and may be held up between two loads for as long as whole launches take.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fdmoe_watchdog import policy
from fdmoe_watchdog.flight_verdict import Verdict, explain
from fdmoe_watchdog.page import (
    FIRST_SLOT,
    LINE_BYTES,
    LINE_WORDS,
    WORD_BYTES,
    Exit,
    ExitWord,
    Host,
    Launch,
    Line,
    Page,
    Phase,
    SlotWord,
    Snapshot,
    Stage,
    Wait,
    parse_slots,
)  # fmt: skip
from fdmoe_watchdog.settings import RecoverySettings
from fdmoe_watchdog.tracker import COUNTED_POLLS, StallTimes, Tracker

CTAS = 2
READING_LOADS = (2 * FIRST_SLOT - Line.EXIT + CTAS) * LINE_WORDS
# a CTA's lines while it is at one item: phase, wait, target, seen; a wait that is soon over is not among them, and what
# follows it neither: those with a target
BEATS: dict[Phase, list[tuple[Phase, Wait, int, int]]] = {
    Phase.ROUTE: [(Phase.ROUTE, Wait.NONE, 0, 0)],
    Phase.UP: [(Phase.UP, Wait.ROUTE_TILES, 1, 0), (Phase.UP, Wait.NONE, 1, 1), (Phase.UP, Wait.NONE, 0, 0)],
    Phase.DOWN: [(Phase.DOWN, Wait.NONE, 0, 0), (Phase.DOWN, Wait.UP_TILES, 2, 1), (Phase.DOWN, Wait.NONE, 2, 2)],
    Phase.COMBINE: [
        (Phase.COMBINE, Wait.NONE, 0, 0),
        (Phase.COMBINE, Wait.DOWN_TILES, 2, 0),
        (Phase.COMBINE, Wait.NONE, 2, 2),
    ],
}
Store = tuple[int, int, int]  # line, word, value
POLL_S = 0.005
# so that some silent readings are a stall
SETTINGS = RecoverySettings(stall_floor_s=0.05, stall_first_s=0.06, stall_ceiling_s=0.1, launch_deadline_s=0.1)


@dataclass(frozen=True)
class Run:
    """One launch: the items of each CTA, the order of the stores within their lines, whether the baseline has the batch
    as well, and whether waits last so long that they are shown."""

    items: tuple[list[Phase], ...]
    order: list[int]
    baseline: bool
    waits: bool = True


@dataclass(frozen=True)
class Pause:
    """Of the reader, before this load of its reading: what is stored meanwhile, and how long that takes."""

    load: int
    stores: int
    seconds: float


@dataclass(frozen=True)
class Reading:
    """`told`: the launch that it finds outstanding is told to end. `silent`: so many more follow of an idle page."""

    before: Pause
    pauses: list[Pause]
    told: bool = False
    silent: int = 0


@dataclass
class Truth:
    """What was stored so far. Times are the reader's clock; of a CTA: when a word of its line last changed."""

    now: float = 0.0
    begun: int = 0
    begun_at: float = 0.0
    ended: int = 0
    changed_at: tuple[float, ...] = (0.0,) * CTAS
    # the host thread's beats, and when they last changed
    host: int = 0
    host_changed_at: float = 0.0
    # CTAs that have stored the number of the launch begun last, a whole line, and the line with which they leave
    come: frozenset[int] = frozenset()
    shown: frozenset[int] = frozenset()
    left: frozenset[int] = frozenset()

    def is_still_since(self, then: float) -> bool:
        """Whether it has been silent since `then`, by the slowest CTA at work, or by all where none is."""
        if not self.shown:
            return self.begun_at <= then
        if at_work := self.come - self.left:
            return any(self.changed_at[cta] <= then for cta in at_work)
        return all(self.changed_at[cta] <= then for cta in self.left)


class Writers:
    """The worker, its kernels and the gateway, one store at a time."""

    def __init__(self, page: Page, runs: list[Run], warm_up: int, picks: list[int]) -> None:
        self.page = page
        self.truth = Truth()
        self.aborted = set[int]()
        self.warm = False
        self._picks = itertools.cycle(picks)
        self._steps = self._work(runs, warm_up)

    def go_on(self, stores: int, seconds: float) -> None:
        started = self.truth.now
        for number in range(1, stores + 1):
            self.truth.now = started + seconds * (number / stores)
            if next(self._steps, None) is None:
                break
        self.truth.now = started + seconds

    def _work(self, runs: list[Run], warm_up: int) -> Iterator[bool]:
        yield self._store(Line.HOST, Host.STAGE, Stage.COMPILING)
        calm = Run(([Phase.ROUTE], [Phase.UP]), list(range(LINE_WORDS)), baseline=False)
        for launch in range(1, warm_up + 1):
            yield from self._kernel(launch, calm)
        yield self._store(Line.LAUNCH, Launch.BEGUN, warm_up)
        self.truth.begun = warm_up
        yield self._store(Line.HOST, Host.STAGE, Stage.SERVING)
        self.warm = True
        for launch, run in enumerate(runs, warm_up + 1):
            yield self._add(Line.GATEWAY, 0)
            yield self._host(self.page.end_wait)
            # the rows are copied to the device
            yield self._host(self.page.begin_wait)
            yield self._host(self.page.end_wait)
            # each launch is of a layer of its own, and of as many tokens
            for word in (Launch.TOKENS, Launch.LAYER, Launch.BEGUN_AT_NS):
                yield self._store(Line.LAUNCH, word, launch)
            truth = self.truth
            truth.begun, truth.begun_at = launch, truth.now
            truth.come = truth.shown = truth.left = frozenset()
            yield self._store(Line.LAUNCH, Launch.BEGUN, launch)
            yield self._host(self.page.begin_wait)
            yield from self._kernel(launch, run)
            yield self._host(self.page.end_wait)
            yield self._add(Line.HOST, Host.FUSED_BATCHES)
            if run.baseline:
                yield self._add(Line.HOST, Host.BASELINE_BEGUN)
                yield self._host(self.page.end_wait)
                yield self._add(Line.HOST, Host.BASELINE_ENDED)
                yield self._add(Line.HOST, Host.BASELINE_BATCHES)
            # and from it
            yield self._host(self.page.begin_wait)
            yield self._host(self.page.end_wait)
            yield self._add(Line.HOST, Host.ANSWERED)
            yield self._host(self.page.begin_wait)

    def _kernel(self, launch: int, run: Run) -> Iterator[bool]:
        """Until all CTAs are done. The first counts its exit last, and reports the launch's end after its last line;
        the others may still be at theirs then."""
        stores = [self._cta(launch, cta, run) for cta in range(CTAS)]
        stored = [0] * CTAS
        leaving = [sum(len(_beats(run, phase)) for phase in run.items[cta]) * LINE_WORDS for cta in range(CTAS)]
        while unfinished := [cta for cta in range(CTAS) if stored[cta] < len(stores[cta])]:
            able = [cta for cta in unfinished if cta or stored[0] < leaving[0] or stored[1] >= leaving[1]]
            cta = able[next(self._picks) % len(able)]
            self._store(*stores[cta][stored[cta]])
            stored[cta] += 1
            if cta == 0 and stored[cta] == leaving[cta] + LINE_WORDS:
                stores[cta] += self._report(launch, run)
            if launch == self.truth.begun:
                named = run.order.index(SlotWord.LAUNCH)
                self.truth.come = frozenset(cta for cta in range(CTAS) if stored[cta] > named)
                self.truth.shown = frozenset(cta for cta in range(CTAS) if stored[cta] >= LINE_WORDS)
                self.truth.left = frozenset(cta for cta in range(CTAS) if stored[cta] >= leaving[cta] + LINE_WORDS)
            yield True

    def _cta(self, launch: int, cta: int, run: Run) -> list[Store]:
        lines = []
        for done, phase in enumerate(run.items[cta]):
            ticket = done * CTAS + cta
            lines += [
                [launch, ticket + 1, phase, done % 3, done << 32, wait << 32 | target, seen, done]
                for _, wait, target, seen in _beats(run, phase)
            ]
        lines.append([launch, (len(run.items[cta]) + 1) * CTAS, Phase.LEFT, 0, 0, 0, 0, len(run.items[cta])])
        return [(FIRST_SLOT + cta, word, line[word]) for line in lines for word in run.order]

    def _report(self, launch: int, run: Run) -> list[Store]:
        code = Exit.ABORTED if self.page.read(Line.ABORT, 0) == launch else Exit.DONE
        if code is Exit.ABORTED:
            self.aborted.add(launch)
        report = [launch, launch << 8 | code, launch, launch, launch, launch, 0, 0]
        return [(Line.EXIT, word, report[word]) for word in run.order]

    def _host(self, beat: Callable[[], None]) -> bool:
        beat()
        self.truth.host, self.truth.host_changed_at = self.page.read(Line.HOST, Host.BEATS), self.truth.now
        return True

    def _add(self, line: int, word: int) -> bool:
        return self._store(line, word, self.page.read(line, word) + 1)

    def _store(self, line: int, word: int, value: int) -> bool:
        cta = line - FIRST_SLOT
        if cta >= 0 and value != self.page.read(line, word):
            changed = list(self.truth.changed_at)
            changed[cta] = self.truth.now
            self.truth.changed_at = tuple(changed)
        if (line, word) == (Line.EXIT, ExitWord.ENDED):
            self.truth.ended = value
        self.page.write(line, word, value)
        return True


def _beats(run: Run, phase: Phase) -> list[tuple[Phase, Wait, int, int]]:
    """Those of an item."""
    return [beat for beat in BEATS[phase] if run.waits or not beat[2]]


class SlowPage(Page):
    """A page whose reader is held up between two loads."""

    # the bytes of all CTAs' lines, as the last reading came upon them
    loaded = b""

    def slow_down(self, writers: Writers, reading: Reading) -> None:
        self._writers, self._pauses, self._loads = writers, reading.pauses, 0

    def _bytes(self, start: int, size: int) -> bytes:
        read = bytearray()
        for at in range(start, start + size, WORD_BYTES):
            for pause in self._pauses:
                if pause.load == self._loads:
                    self._writers.go_on(pause.stores, pause.seconds)
            read += self.mapped[at : at + WORD_BYTES]
            self._loads += 1
        if start == Line.EXIT * LINE_BYTES:
            self.loaded = bytes(read[FIRST_SLOT * LINE_BYTES - start :])
        return bytes(read)


class Watch:
    """What the watchdog makes of its readings, each of which is held against the truth when it began and ended."""

    def __init__(self, page: SlowPage, writers: Writers) -> None:
        self.page, self.writers = page, writers
        self.learned: list[tuple[int, int, float]] = []
        times = StallTimes(SETTINGS)
        learn = times.learn

        def note(layer: int, tokens: int, silence_s: float, now_s: float) -> None:
            self.learned.append((layer, tokens, silence_s))
            learn(layer, tokens, silence_s, now_s)

        times.learn = note  # type: ignore[method-assign]
        self.tracker = Tracker(times, POLL_S)
        self.state = policy.initial(("a",), 0.0)
        for seen in (policy.Seen(alive=False), policy.Seen(alive=False), policy.Seen(alive=True, ready=True)):
            holder = policy.HolderSeen(alive=True, ready=True)
            self.state, _ = policy.decide(self.state, policy.Observation(0.0, {"a": seen}, holder, 0.0), SETTINGS)
        assert self.state.workers["a"].life is policy.Life.READY
        # by the tracker's clock, which says when a reading began: when it was over; and when a launch was first seen
        self.over_at: dict[float, float] = {}
        self.seen_at: dict[int, float] = {}
        self.lines: list[tuple[float, list[bytes]]] = []

    def read(self, reading: Reading) -> None:
        writers, tracker = self.writers, self.tracker
        writers.go_on(reading.before.stores, reading.before.seconds)
        warm, before = writers.warm, replace(writers.truth)
        self.page.slow_down(writers, reading)
        snapshot = self.page.snapshot()
        learned = len(self.learned)
        tracker.read(snapshot, before.now)
        self.over_at[round(tracker.clock_s, 9)] = writers.truth.now
        self.seen_at.setdefault(snapshot.begun, tracker.clock_s)
        self.lines.append((tracker.clock_s, _lines(self.page.loaded)))
        if warm:
            self._check_words(snapshot, before)
            self._check_silence(snapshot, before)
            self._check_decisions(before)
        self._check_learned(self.learned[learned:])
        self._check_verdict(snapshot, explain(snapshot, ages_s=tracker.ages_s))
        if reading.told and snapshot.outstanding:
            self.page.write(Line.ABORT, 0, snapshot.begun)

    def _check_words(self, snapshot: Snapshot, before: Truth) -> None:
        now = self.writers.truth
        assert before.begun <= snapshot.begun <= now.begun
        assert before.ended <= snapshot.ended <= now.ended
        assert before.host <= snapshot.host_beats <= now.host
        assert snapshot.ended <= snapshot.begun, "it has ended before it has begun"
        assert all(slot.launch <= snapshot.begun for slot in parse_slots(snapshot.slots)), "a beat before the begin"
        if snapshot.exit is not Exit.NONE:
            assert (snapshot.exit is Exit.ABORTED) == (snapshot.ended in self.writers.aborted)
        if snapshot.outstanding:
            assert before.ended < snapshot.begun, "it had ended before it was looked at"
        else:
            assert now.ended >= snapshot.begun, "it has not ended"

    def _check_silence(self, snapshot: Snapshot, before: Truth) -> None:
        quiet_s = self.tracker.quiet_s
        assert 0 <= quiet_s <= self.tracker.clock_s
        if quiet_s > 0:
            assert snapshot.outstanding
            assert snapshot.begun == before.begun
            still = before.is_still_since(self._since(quiet_s)) or self._looks_still(before, quiet_s)
            assert still, f"a silence of {quiet_s} s, and it has beaten"
        if still_s := self.tracker.host_still_s:
            still = before.host_changed_at <= self._since(still_s)
            assert still, f"the host was still for {still_s} s, and it has beaten"
            assert snapshot.host_waits is (before.host % 2 == 1), "still, and not as it was"

    def _since(self, silence_s: float) -> float:
        """When the reading with which a silence began was over: what came while it was on may have been in it."""
        return self.over_at[round(self.tracker.clock_s - silence_s, 9)]

    def _looks_still(self, before: Truth, silence_s: float) -> bool:
        """Whether a CTA at work was found with one line for `silence_s`, by the tracker's clock, though it has beaten:
        the line came to be what a reading had found when it was half stored, and nobody can tell."""
        began = self.tracker.clock_s - silence_s + 1e-9
        first = max((at for at, (clock_s, _) in enumerate(self.lines) if clock_s <= began), default=None)
        if first is None:
            return False
        shown = [lines for _, lines in self.lines[first:]]
        return any(len({lines[cta] for lines in shown}) == 1 for cta in before.come - before.left)

    def _check_decisions(self, before: Truth) -> None:
        tracker = self.tracker
        assert tracker.last is not None
        seen = policy.Seen(
            alive=True, ready=True, launch=tracker.serving_launch(), ended=tracker.last.ended,
            quiet_s=tracker.quiet_s, stall_after_s=tracker.stall_after_s(), untouched_s=tracker.untouched_s,
            host_still_s=tracker.host_still_s,
        )  # fmt: skip
        observation = policy.Observation(before.now, {"a": seen}, policy.HolderSeen(alive=True, ready=True), 0.0)
        told = self.state.workers["a"].launch
        self.state, actions = policy.decide(self.state, observation, SETTINGS)
        for action in actions:
            if isinstance(action, policy.AbortEnded):
                assert self.writers.truth.ended >= told or not action.in_time
            if isinstance(action, policy.Abort):
                assert before.ended < action.launch == before.begun, "a stall of a launch that has ended"
                # a reading that is held up counts as it began
                since = before.now - SETTINGS.stall_floor_s + POLL_S * COUNTED_POLLS
                assert before.is_still_since(since) or self._looks_still(before, SETTINGS.stall_floor_s)

    def _check_learned(self, learned: list[tuple[int, int, float]]) -> None:
        for layer, tokens, silence_s in learned:
            assert layer == tokens <= self.writers.truth.ended, "of a launch that has not ended"
            assert layer not in self.writers.aborted, "of a launch that was aborted"
            assert 0 <= silence_s <= self.tracker.clock_s - self.seen_at[layer] + 1e-9

    def _check_verdict(self, snapshot: Snapshot, verdict: Verdict) -> None:
        assert verdict.words.startswith("no launch is outstanding") is not snapshot.outstanding
        ctas = {cta.number: cta for cta in verdict.ctas}
        assert all(cta.slot.launch == snapshot.begun for cta in ctas.values())
        for cause in verdict.causes:
            assert (cause.kind == "lost") is (not cause.ctas)
            assert all(ctas[number].state == "working" for number in cause.ctas)
            if cause.waiter is not None:
                assert ctas[cause.waiter].state == "waiting"
                assert all(ctas[number].order < ctas[cause.waiter].order for number in cause.ctas[:1])


def _lines(slots: bytes) -> list[bytes]:
    return [slots[at : at + LINE_BYTES] for at in range(0, len(slots), LINE_BYTES)]


_ITEMS = st.lists(st.sampled_from(list(BEATS)), min_size=1, max_size=3)
_RUNS = st.builds(
    Run, items=st.tuples(_ITEMS, _ITEMS), order=st.permutations(range(LINE_WORDS)), baseline=st.booleans(),
    waits=st.booleans(),
)  # fmt: skip
_PAUSES = st.builds(
    Pause, load=st.integers(0, READING_LOADS - 1), stores=st.just(0) | st.integers(0, 150),
    seconds=st.sampled_from([0.0, 0.005, 0.03, 1.0]),
)  # fmt: skip
_READINGS = st.builds(
    Reading,
    before=_PAUSES,
    pauses=st.lists(_PAUSES, max_size=2),
    told=st.booleans(),
    silent=st.sampled_from([0, 0, 0, 6]),
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("torn") / "page"


RUN = Run(([Phase.ROUTE], [Phase.ROUTE]), list(range(LINE_WORDS)), baseline=False)


@settings(max_examples=200, deadline=None)
@given(
    runs=st.lists(_RUNS, min_size=1, max_size=5),
    warm_up=st.sampled_from([0, 2]),
    picks=st.lists(st.integers(0, CTAS - 1), min_size=1, max_size=20),
    readings=st.lists(_READINGS, min_size=2, max_size=20),
)
# a CTA beats between the load of `begun` and that of its line
@example([RUN], 0, [0], [Reading(Pause(0, 4, 0.0), []), Reading(Pause(0, 0, 0.0), [Pause(40, 9, 0.0)])])
# a launch ends after the load of `ended`, and the words of the next one come before its `begun`
@example([RUN, RUN], 0, [0], [Reading(Pause(0, 23, 0.0), [Pause(1, 42, 0.0)]), Reading(Pause(0, 0, 0.0), [])])
# one that was told to end has, and the next one has ended, too
@example([RUN, RUN], 0, [0], [Reading(Pause(0, 23, 0.0), [], told=True), Reading(Pause(0, 90, 0.0), [])])
# a CTA's third line is what a reading has found of its first
@example(
    [RUN, Run(([Phase.UP], [Phase.ROUTE]), [0, 1, 2, 3, 4, 7, 6, 5], baseline=False)], 0, [0],
    [Reading(Pause(0, 4, 0.0), [Pause(0, 70, 0.0)]), Reading(Pause(0, 0, 0.005), []), Reading(Pause(0, 17, 0.0), [])],
)  # fmt: skip
# a CTA beats, and is silent for a while that is no stall
@example(
    [RUN], 0, [0],
    [Reading(Pause(0, 4, 0.1), []), Reading(Pause(0, 16, 0.0), []), *[Reading(Pause(0, 0, 0.005), [])] * 4],
)  # fmt: skip
# the host thread takes a batch up, and nothing else has changed
@example([RUN], 0, [0], [Reading(Pause(0, 4, 0.0), []), Reading(Pause(0, 1, 0.005), [])])
def test_no_reading_leads_to_a_conclusion_that_cannot_be(
    path: Path, runs: list[Run], warm_up: int, picks: list[int], readings: list[Reading]
) -> None:
    path.unlink(missing_ok=True)
    with SlowPage.create(path, generation=1, slots=CTAS) as page:
        writers = Writers(page, runs, warm_up, picks)
        watch = Watch(page, writers)
        for reading in readings:
            watch.read(reading)
            for _ in range(reading.silent):
                watch.read(Reading(Pause(0, 0, 0.02), []))
