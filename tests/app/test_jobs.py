"""Long work tells how far it is, ends when told, and lets others pass; sessions are bounded and forgotten."""

import threading
import time

import pytest

from vitrail.app.jobs import ModelQueue, Report, Stopped, follow
from vitrail.app.pictures import Picture
from vitrail.app.session import Sessions


def _picture(size: int) -> Picture:
    return Picture("a.png", bytes(size), 1)


def test_reports_come_and_the_result_last():
    def work(report):
        for step in range(3):
            report("counting", step, 3)
            time.sleep(0.3)
        return "done"

    seen, results = [], []

    def whole():
        results.append((yield from follow(work, threading.Event())))

    seen += whole()
    assert results == ["done"]
    assert Report("counting", 2, 3) in seen


def test_errors_of_the_work_are_raised_to_who_waits():
    def work(report):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        list(follow(work, threading.Event()))


@pytest.mark.parametrize("how", ["told", "left"])
def test_work_ends_when_told_or_when_nobody_waits(how):
    stop, steps = threading.Event(), []

    def work(report):
        for step in range(1000):
            report("counting", step, 1000)
            steps.append(step)
            time.sleep(0.01)
        return "done"

    reports = follow(work, stop)
    next(reports)
    if how == "told":
        stop.set()
        with pytest.raises(Stopped):
            list(reports)
    else:
        reports.close()
        time.sleep(0.1)
    count = len(steps)
    time.sleep(0.1)
    assert len(steps) == count < 1000


def test_quick_questions_pass_long_ones():
    turn, order = ModelQueue(), []
    inside, waited = threading.Event(), threading.Event()

    def long():
        with turn.long() as breathe:
            inside.set()
            waited.wait(5)
            time.sleep(0.1)
            order.append("long, first half")
            breathe()
            order.append("long, second half")

    def quick():
        inside.wait(5)
        waited.set()
        with turn.quick():
            order.append("quick")

    threads = [threading.Thread(target=one) for one in (long, quick)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert order == ["long, first half", "quick", "long, second half"]


def test_desks_are_cleared_when_old_too_many_or_too_full():
    now = [0.0]
    sessions = Sessions(most=3, most_bytes=1000, minutes=1, clock=lambda: now[0])
    sessions.of("a").put(_picture(400))
    sessions.of("b").put(_picture(400))
    assert sessions.of("a").picture is not None
    sessions.of("c").put(_picture(400))
    sessions.of("c")
    assert "b" not in sessions  # longest unused, and together too large
    assert "a" in sessions
    stop = sessions.of("a").stop = threading.Event()
    now[0] = 61.0
    sessions.of("c")
    assert "a" not in sessions
    assert stop.is_set()
    for name in "defg":
        sessions.of(name)
    assert len(sessions) == 3
    stop = sessions.of("g").stop = threading.Event()
    sessions.of("g").put(_picture(40))
    sessions.leave("g")
    assert stop.is_set()
    assert sessions.find("g", _picture(40).key) is not None  # whoever loads the page again goes and comes
    now[0] += 601.0
    sessions.tidy()
    sessions.of("h")
    assert "g" not in sessions


def test_desks_of_two_visitors_are_two():
    sessions = Sessions()
    sessions.of("a").put(_picture(1))
    assert sessions.of("b").picture is None
