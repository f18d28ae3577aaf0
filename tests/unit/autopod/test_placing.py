"""A drain asks its fleet once for all of its pods, and again when the answer is old or used up."""

from autopod.status import placing
from autopod.status.placing import Placing


class Fleet:
    """Answers, and has the time."""

    def __init__(self, **answer):
        self.answer, self.asked, self.now = answer, [], 1000.0

    def placing(self):
        return Placing(self.ask, lambda: self.now)

    def ask(self, names, sent):
        self.asked.append((list(names), list(sent)))
        return {pod: hosts for pod, hosts in self.answer.items() if pod in names}


def test_all_pods_are_asked_for_at_once():
    fleet = Fleet(a=["h1", "h2"], b=["h2"])
    where = fleet.placing()
    assert where.targets("a", ["b", "c"], []) == ["h1", "h2"]
    assert where.targets("b", ["c"], ["h1"]) == ["h2"]
    assert where.targets("c", [], ["h1", "h2"]) == []
    assert fleet.asked == [(["a", "b", "c"], [])]


def test_an_old_answer_is_not_used():
    fleet = Fleet(a=["h1"], b=["h1"])
    where = fleet.placing()
    where.targets("a", ["b"], [])
    fleet.now += placing.FRESH_S
    fleet.answer["b"] = ["h3"]
    assert where.targets("b", [], ["h1"]) == ["h3"]
    assert fleet.asked[1:] == [(["b"], ["h1"])]


def test_without_an_answer_the_next_pod_asks_again():
    fleet = Fleet()
    where = fleet.placing()
    assert where.targets("a", ["b"], []) == []
    fleet.answer["b"] = ["h1"]
    assert where.targets("b", [], []) == ["h1"]
    assert where.targets("b", [], []) == ["h1"]
    assert len(fleet.asked) == 3
