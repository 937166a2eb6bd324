"""What came of a fault's repetitions, and whether that is what it must come to."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from fdmoe_ops.chaos.load import RETRY_S, Sent
from fdmoe_ops.chaos.plays import Play

# so many of a client's requests may have to be sent again in a repetition; one was, wherever connections broke
_AGAIN = 3


@dataclass
class Result:
    """One fault's repetitions. Times in seconds, `seconds` of all together; `notes` are counts that only some have.

    `begun` has the number of requests that had been sent before each repetition, `mismatches` is how many comparisons
    found another answer; `compared`: each answer was, before it left.
    """

    play: Play
    repetitions: int = 0
    seconds: float = 0.0
    detect_s: list[float] = field(default_factory=list)
    answer_s: list[float] = field(default_factory=list)
    restart_s: list[float] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)
    final_path: str = ""
    problem: str = ""
    clients: int = 1
    compared: bool = False
    mismatches: int = 0
    begun: list[int] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.unmet

    @property
    def unmet(self) -> list[str]:
        """What is not as it must be, in words."""
        play = self.play
        found = [self.problem] if self.problem else []
        if lost := sum(bool(sent.failed) for sent in self.sent):
            found.append(f"{lost} lost")
        found += self._unmet_wrong() + self._unmet_again() + play.unfair(self.notes, self.repetitions)
        if self.final_path != play.final_path:
            found.append(f"served by {self.final_path or 'nobody'} in the end")
        return found

    def _each(self) -> list[list[Sent]]:
        """The requests of each repetition, by their ends."""
        return [self.sent[first:last] for first, last in pairwise([0, *self.begun[1:], len(self.sent)])]

    def _unmet_wrong(self) -> list[str]:
        """A batch holds one request of each client at most."""
        allowed = 0 if self.compared else self.play.wrong * self.clients
        wrong = [sum(sent.wrong for sent in repetition) for repetition in self._each()]
        if (most := max(wrong)) > allowed:
            return [f"{most} wrong in a repetition, of {allowed} at most"]
        if self.play.wrong and not self.mismatches and not any(wrong):
            return ["no answer was wrong, and none was found to be"]
        return []

    def _unmet_again(self) -> list[str]:
        allowed = _AGAIN * self.clients if self.play.away_s else 0
        again = max(sum(bool(sent.retries) for sent in repetition) for repetition in self._each())
        if again > allowed:
            return [f"{again} sent again in a repetition, of {allowed} at most"]
        tries = max((sent.retries for sent in self.sent), default=0)
        if tries > (allowed := round(self.play.away_s / RETRY_S)):
            return [f"one sent again {tries} times, of {allowed} at most"]
        return []
