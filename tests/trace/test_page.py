"""The page of `dllm trace --html` in a browser: it replays what Python does, fetching nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import dllm
from dllm.trace import TraceRecord, record_of
from dllm.trace.page import assets, count, page, texts
from tests.support.browser import chrome
from tests.support.traces import BY_HAND, GAPS, METHODS, OPTIONS, QUESTIONS, hostile

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

pytestmark = pytest.mark.slow

# Overwritten after the end; one character of two tokens; three edits in a row.
CUT = replace(BY_HAND, changes=((0, 1, 5), (1, 3, 6)), tokens=(9, 5, 3, 1), num_steps=2)
JOINED = replace(BY_HAND, joined=((1, 3, "é"),))
EDITED = replace(BY_HAND, changes=((0, 1, 5), (1, 1, 9), (2, 1, 3), (3, 1, 7)))
CELLS = "[...document.querySelectorAll('.trace-canvas .trace-token')]"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    yield from chrome(tmp_path_factory.mktemp("profile"))


def opened(browser: Chrome, folder: Path, records: list[TraceRecord], title: str = "Rows") -> None:
    file = folder / "page.html"
    file.write_text(page(records, title), encoding="utf-8")
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(file.as_uri())


def press(browser: Chrome, *keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def one(browser: Chrome, selector: str) -> WebElement:
    from selenium.webdriver.common.by import By

    return browser.find_element(By.CSS_SELECTOR, selector)


def shown(browser: Chrome) -> list[str]:
    return list(browser.execute_script(f"return {CELLS}.map(cell => cell.textContent)"))


def requests_of(browser: Chrome) -> list[str]:
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [params["request"]["url"] for params in sent]


@pytest.fixture(scope="module")
def runs(tiny: dllm.HostedModel) -> list[TraceRecord]:
    found = []
    for scheduler in METHODS:
        for prompts in (QUESTIONS, GAPS):
            out = dllm.generate(tiny, prompts, scheduler=scheduler, **OPTIONS)
            rows = range(len(prompts))
            found += [record_of(out, row, tiny.tokenizer, f"{scheduler} {row}") for row in rows]
    return found


def test_frames_of_the_script_are_those_of_python(
    browser: Chrome, runs: list[TraceRecord], tmp_path: Path
) -> None:
    records = [*runs, BY_HAND, CUT, JOINED, EDITED, hostile()]
    opened(browser, tmp_path, records)
    script = """
        return JSON.parse(document.getElementById("records").textContent).map((record) =>
            Array.from({length: record.num_steps + 1}, (_, step) => {
                const frame = traceFrame(record, step);
                return [frame.tokens, frame.written, [...frame.changed], traceTexts(record, frame)];
            }));
    """
    found: list[Any] = browser.execute_script(script)
    for record, frames in zip(records, found, strict=True):
        expected = [
            [list(f.tokens), list(f.written), [*map(list, f.changed.items())], texts(record, f)]
            for f in record.frames()
        ]
        assert frames == expected, record.label


def test_keys_move_the_canvas_that_is_seen(
    browser: Chrome, runs: list[TraceRecord], tmp_path: Path
) -> None:
    from selenium.webdriver.common.keys import Keys

    for record in [EDITED, BY_HAND, *runs[::7]]:
        opened(browser, tmp_path, [record])
        press(browser, "c")
        frames = list(record.frames())
        for step, frame in enumerate(frames):
            assert shown(browser) == texts(record, frame)
            assert one(browser, ".trace-counter").text == count(record, frame, step)
            press(browser, Keys.ARROW_RIGHT)
        for key, step in [(Keys.HOME, 0), (Keys.END, -1), (Keys.ARROW_LEFT, -2)]:
            press(browser, key)
            assert shown(browser) == texts(record, frames[step])


def test_buttons_and_slider_move_it_too(browser: Chrome, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(browser, tmp_path, [BY_HAND])
    counter, slider = one(browser, ".trace-counter"), one(browser, ".trace-bar input")
    for label, step in [("Last", 4), ("One step back", 3), ("First", 0), ("One step on", 1)]:
        one(browser, f"button[aria-label^='{label}']").click()
        assert counter.text.startswith(f"step {step} of 4")
    slider.send_keys(Keys.ARROW_RIGHT)
    assert counter.text.startswith("step 2 of 4")
    assert slider.get_attribute("aria-valuetext") == counter.text
    slider.send_keys(Keys.END)
    assert counter.text.startswith("step 4 of 4")


def test_space_plays_and_pauses(browser: Chrome, tmp_path: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    opened(browser, tmp_path, [BY_HAND])
    press(browser, " ")
    assert one(browser, ".trace-play").text == "Pause"
    assert one(browser, ".trace-counter").get_attribute("aria-live") == "off"
    waiting = WebDriverWait(browser, 10)
    waiting.until(lambda b: one(b, ".trace-counter").text.startswith("step 4 of 4"))
    assert one(browser, ".trace-play").text == "Play"
    assert one(browser, ".trace-counter").get_attribute("aria-live") == "polite"
    one(browser, ".trace-play").click()
    assert one(browser, ".trace-counter").text.startswith("step 0 of 4")
    press(browser, " ")  # on the button: it pauses once, not twice
    assert one(browser, ".trace-play").text == "Play"


def test_what_is_pointed_at_is_told(browser: Chrome, tmp_path: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    record = replace(BY_HAND, joined=((2, 4, "é"),))
    opened(browser, tmp_path, [record])
    press(browser, Keys.END)
    cells = browser.find_elements(By.CSS_SELECTOR, ".trace-canvas .trace-token")

    def told(column: int) -> str:
        ActionChains(browser).move_to_element(cells[column]).perform()
        return one(browser, ".trace-detail").text

    assert told(0) == '"p" · id 9 · column 0\nprompt'
    assert told(1).splitlines() == [
        '"g\\th" · id 7 · column 1 · block entered after step 0',
        "committed in step 4, confidence 0.5",
        'history: step 1: "e" → step 2: masked again → step 3: "f\\n" → step 4: "g\\th"',
    ]
    assert told(2) == '"c" · id 3 · column 2 · a part of "é"\ngiven text'
    assert "not committed by the model" in told(3)
    press(browser, ",", ".", ".")
    assert one(browser, ".trace-detail").text.startswith('"')
    press(browser, Keys.ESCAPE)
    assert "Point at a token" in one(browser, ".trace-detail").text


def test_colours_tell_steps_and_confidence(browser: Chrome, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    sure = replace(BY_HAND, changes=None, commit_step=(0, -1, 3), confidence=(0.25, None, 1.0))
    opened(browser, tmp_path, [sure])
    press(browser, Keys.END)
    seen = []
    for theme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": theme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        for _ in range(2):
            script = f"return {CELLS}.map(cell => getComputedStyle(cell).backgroundColor)"
            seen.append(tuple(browser.execute_script(script)))
            press(browser, "c")
    assert len({one for row in seen for one in (row[1], row[3])}) == 8
    assert all(row[0] == row[2] == "rgba(0, 0, 0, 0)" for row in seen)
    pressed = one(browser, "button[aria-pressed='true']")
    assert pressed.text == "commit step"


def test_nothing_is_fetched_and_no_text_runs(browser: Chrome, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    record = hostile()
    opened(browser, tmp_path, [record, record], title=record.label)
    for step, frame in enumerate(record.frames()):
        assert shown(browser) == texts(record, frame), step
        press(browser, Keys.ARROW_RIGHT)
    press(browser, ".", ".")
    assert "alert" in one(browser, ".trace-detail").text
    assert one(browser, "h1").text.startswith("</script><script>alert(1)")
    for counted, number in [
        ("document.images", 0),
        ("document.scripts", 3),
        ("performance.getEntriesByType('resource')", 0),
    ]:
        assert browser.execute_script(f"return {counted}.length") == number
    asked = [url for url in requests_of(browser) if not url.startswith("data:")]
    assert asked == [(tmp_path / "page.html").as_uri()]
    assert not browser.get_log("browser")  # neither errors nor refusals of the policy


def test_the_policy_refuses_what_is_not_the_viewer(browser: Chrome, tmp_path: Path) -> None:
    text = page([BY_HAND], "x").replace(
        "<main>", "<main><script>window.ran = 1</script><img src=x onerror='window.ran = 2'>"
    )
    (tmp_path / "bad.html").write_text(text, encoding="utf-8")
    browser.get((tmp_path / "bad.html").as_uri())
    assert browser.execute_script("return window.ran === undefined")
    assert one(browser, ".trace-counter").text.startswith("step 0 of 4")


def test_several_rows_are_chosen_from_a_list(browser: Chrome, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    other = replace(BY_HAND, label="other", tokens=(9, 9, 9, 9), changes=None)
    opened(browser, tmp_path, [BY_HAND, other])
    choice = Select(one(browser, "select"))
    assert [option.text for option in choice.options] == ["1: by hand", "2: other"]
    choice.select_by_index(1)
    assert one(browser, ".trace-story").text.startswith("other")
    assert len(browser.find_elements(By.CSS_SELECTOR, ".trace")) == 1
    opened(browser, tmp_path, [BY_HAND])
    assert not browser.find_elements(By.CSS_SELECTOR, "select")


def test_thousands_of_tokens_are_quick_enough(browser: Chrome, tmp_path: Path) -> None:
    slots, steps = 4096, 512
    long = replace(
        BY_HAND,
        tokens=(9, *[5] * slots),
        given=(),
        commit_step=tuple(n % steps for n in range(slots)),
        confidence=(0.5,) * slots,
        changes=None,
        num_steps=steps,
    )
    opened(browser, tmp_path, [long])
    script = """
        const viewer = mountTrace(document.getElementById("trace"), arguments[0]);
        const start = performance.now();
        for (let step = 0; step < 50; step++) viewer.show(step * 10);
        document.body.offsetHeight;
        return (performance.now() - start) / 50;
    """
    milliseconds: float = browser.execute_script(script, long.to_json())
    assert milliseconds < 200
    last = (*long.frames(),)[490]
    assert shown(browser) == texts(long, last)


def test_viewers_stand_side_by_side_in_a_page_of_ones_own(browser: Chrome, tmp_path: Path) -> None:
    css, js = assets()
    data = json.dumps([BY_HAND.to_json()] * 2)
    text = f"""<!doctype html><meta charset="utf-8"><style>{css}</style><div id="a"></div>
        <div id="b"></div><script>{js}</script><script>const records = {data};
        mountTrace(document.getElementById("a"), records[0]).show(2);
        mountTrace(document.getElementById("b"), records[1]);</script>"""
    (tmp_path / "own.html").write_text(text, encoding="utf-8")
    browser.get((tmp_path / "own.html").as_uri())
    assert one(browser, "#a .trace-counter").text.startswith("step 2 of 4")
    assert one(browser, "#b .trace-counter").text.startswith("step 0 of 4")
