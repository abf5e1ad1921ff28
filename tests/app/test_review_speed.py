"""A step on the review page, from the key to the next suspect painted whole, with 500 suspects."""

import pytest
from app.audits import an_audit
from app.conftest import Visitor
from app.test_review import Serving

pytestmark = pytest.mark.slow

SUSPECTS, STEPS = 500, 100
MOST = 400.0  # milliseconds; 100 and below on a machine that has nothing else to do

# Of each step: when the key came, and when a frame with all its pictures had been painted (the task after the frame).
STOPWATCH = """() => {
    const article = document.querySelector("#rv-suspect");
    window.steps = [];
    let began = null;
    document.addEventListener("keydown", event => { began = event.timeStamp; }, true);
    new MutationObserver(() => requestAnimationFrame(() => {
        const channel = new MessageChannel();
        channel.port1.onmessage = () => { steps.push(performance.now() - began); };
        channel.port2.postMessage(null);
    })).observe(article, { attributeFilter: ["data-image"] });
}"""


def test_a_step_is_painted_at_once(chromium, tmp_path):
    an_audit(tmp_path, SUSPECTS, typical=6, side=640)
    running = Serving(tmp_path)
    visitor = Visitor(chromium, running, viewport={"width": 1440, "height": 900})
    page = visitor.page
    page.goto(running.address)
    page.wait_for_function("document.querySelector('#rv-suspect').dataset.image === '0'")
    page.wait_for_timeout(3000)  # a reader looks at the first one
    page.evaluate(STOPWATCH)
    for step in range(STEPS):
        page.keyboard.press("krbds"[step % 5])
        visitor.until(f"steps.length > {step}")
        assert page.evaluate("[...document.querySelectorAll('#rv-suspect img')].every(one => one.complete)")
        page.wait_for_timeout(250)
    took = sorted(page.evaluate("steps"))
    visitor.until(f"document.querySelector('#rv-done').textContent === '{STEPS} of {SUSPECTS} decided'")
    visitor.leave()
    running.stop()
    print(f"{STEPS} steps: median {took[STEPS // 2]:.0f} ms, longest {took[-1]:.0f} ms")  # noqa: T201
    assert len(took) == STEPS
    assert took[STEPS // 2] < MOST / 4
    assert took[-1] < MOST
