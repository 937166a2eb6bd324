from __future__ import annotations

from fdmoe_ops.annotator.chronicle import Annotation
from fdmoe_ops.annotator.outbox import Outbox


def annotation(key: int, text: str = "text") -> Annotation:
    return Annotation(key, 10**12, None, ("fdmoe",), text)


def test_in_order_and_no_more_than_there_is_room_for() -> None:
    outbox = Outbox(2)
    assert [outbox.put(annotation(key)) for key in (1, 2, 3)] == [True, True, False]
    outbox.close()
    taken = [outbox.take(), outbox.take(), outbox.take()]
    assert taken == [annotation(1), annotation(2), None]


def test_what_waits_is_told_further_in_its_place() -> None:
    outbox = Outbox(2)
    outbox.put(annotation(1))
    outbox.put(annotation(2))
    assert outbox.put(annotation(1, "longer")), "a full box has room for what is in it already"
    assert outbox.take() == annotation(1, "longer")
    assert len(outbox) == 1
