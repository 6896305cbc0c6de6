"""The start-up phases: they add up, and the last mark ends them."""

import time

from sft.run.phases import Phases, process_start


def test_the_phases_add_up_to_the_total(monkeypatch):
    now = iter([103.0, 103.5, 104.5, 107.0])
    monkeypatch.setattr(time, "time", lambda: next(now))
    phases = Phases(began=100.0)
    for name, last in (("imports", False), ("data", False), ("imports", False), ("first step", True)):
        phases.mark(name, last)
    phases.mark("too late")
    assert phases.figures() == {"imports": 4.0, "data": 0.5, "first step": 2.5}
    assert phases.line() == "first step after 7.0 s: imports 4.0, data 0.5, first step 2.5"


def test_the_process_start_time_is_in_the_past():
    assert 0 < time.time() - process_start() < 86400
