"""The page at /: a chat in a browser, by keyboard, with the canvas as it fills."""

from __future__ import annotations

import json
from collections.abc import Iterator
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import httpx
import pytest

import dllm
from dllm.serve.engine import Engine
from dllm.serve.page import page
from dllm.serve.service import Access, Service
from tests.support.browser import chrome
from tests.support.serving import BASE, LONG, listening

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

PENS = "tom has 53 pens. tom loses 3. how many pens does tom have?"
RIGHT = "53-3=50; #### 50"


def test_the_page_is_whole_and_runs_nothing_else(http: httpx.Client) -> None:
    found = http.get("/")
    assert found.status_code == 200
    assert "http" not in found.text.replace("http-equiv", ""), "it takes nothing from elsewhere"
    policy = found.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_names_cannot_end_a_script(tiny: dllm.HostedModel) -> None:
    name = "</script><img src=x onerror=alert(1)>"
    made, _ = page(Service(tiny, name, Engine(tiny), BASE))
    assert "<img" not in made
    state = made.split('id="state">')[1].split("</script>")[0]
    assert json.loads(state)["model"] == name


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    yield from chrome(tmp_path_factory.mktemp("profile"))


def run(browser: Chrome, script: str, *given: Any) -> Any:
    return browser.execute_script(script, *given)


def text_of(browser: Chrome, place: str) -> str:
    return str(run(browser, "return document.getElementById(arguments[0]).innerText", place))


def until(browser: Chrome, script: str) -> None:
    end = monotonic() + LONG
    while not run(browser, script):
        assert monotonic() < end, script
        sleep(0.01)


def press(browser: Chrome, *keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def write(browser: Chrome, place: str, value: str) -> None:
    script = "document.getElementById(arguments[0]).value = arguments[1]"
    run(browser, script, place, value)


def wrong(browser: Chrome) -> list[Any]:
    return [one for one in browser.get_log("browser") if one["level"] == "SEVERE"]


@pytest.mark.slow
def test_a_chat_by_keyboard(browser: Chrome, address: str) -> None:
    wrong(browser)  # what other tests provoked is read once, and gone
    browser.get(address)
    write(browser, "pause", "0")
    press(browser, PENS, "\ue007")  # Enter
    until(browser, "return document.getElementById('counts').innerText.includes('ended by')")
    assert RIGHT in text_of(browser, "log")
    assert "forwards" in text_of(browser, "counts")
    cells = run(
        browser, "return [...document.querySelectorAll('#canvas .cell')].map(c => c.innerText)"
    )
    assert len(cells) == 64
    assert "".join(cells[:11]).replace(" ", "") == RIGHT.replace(" ", "")
    assert run(browser, "return document.activeElement.id") == "text", "the next message"
    press(browser, "copy: tom, ann.", "\ue007")
    until(browser, "return document.querySelectorAll('.said.assistant').length == 2")
    until(browser, "return !document.getElementById('send').disabled")
    assert wrong(browser) == []


@pytest.mark.slow
def test_steps_are_seen_and_escape_stops(browser: Chrome, address: str, service: Service) -> None:
    browser.get(address)
    write(browser, "scheduler", "fixed_quota")
    write(browser, "cache", "none")
    write(browser, "pause", "150")
    press(browser, PENS, "\ue007")
    until(browser, "return document.querySelectorAll('#canvas .new').length == 1")
    assert run(browser, "return document.querySelectorAll('#canvas .draft').length") > 0
    assert run(browser, "return document.querySelectorAll('#canvas .open').length") > 0
    press(browser, "\ue00c")  # Escape
    until(browser, "return !document.getElementById('alarm').hidden")
    assert "Stopped" in text_of(browser, "alarm")
    assert text_of(browser, "log") == ""
    assert run(browser, "return document.getElementById('text').value") == PENS, "to mend it"


@pytest.mark.slow
def test_what_is_refused_is_said(browser: Chrome, address: str) -> None:
    browser.get(address)
    write(browser, "scheduler", "nobody")
    press(browser, PENS, "\ue007")
    until(browser, "return !document.getElementById('alarm').hidden")
    assert "unknown scheduler 'nobody'" in text_of(browser, "alarm")


@pytest.mark.slow
def test_a_key_is_asked_for(browser: Chrome, tiny: dllm.HostedModel) -> None:
    service = Service(tiny, "tiny", Engine(tiny), BASE, access=Access("secret"))
    with listening(service) as at:
        browser.get(at)
        press(browser, PENS, "\ue007")
        until(browser, "return document.getElementById('alarm').innerText.includes('API key')")
        write(browser, "key", "secret")
        press(browser, "\ue007")
        until(browser, "return document.getElementById('counts').innerText.includes('ended by')")
        assert RIGHT in text_of(browser, "log")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_light_and_dark(browser: Chrome, address: str, scheme: str) -> None:
    size = {"width": 420, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(address)
    assert run(browser, "return document.documentElement.scrollWidth") <= 420
    ink, paper = run(
        browser, "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
    )
    bright = [sum(map(int, one.split("(")[1].split(")")[0].split(",")[:3])) for one in (ink, paper)]
    assert (bright[0] > bright[1]) == (scheme == "dark")
    assert abs(bright[0] - bright[1]) > 300
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
