"""The page in a browser, with a server that answers from a script: what it shows, what it sends, what it lets in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import pytest
from starlette.testclient import TestClient

from dsv3c.runtime.server import page as served_page
from tests.runtime.server import scripted
from tests.runtime.server.scripted import EXPLAIN, KEY, MARKDOWN, STORY, STORY_OF, Script

if TYPE_CHECKING:
    from selenium import webdriver

    from tests.runtime.server.browser import Page
    from tests.runtime.server.conftest import Running

IMAGES = Path(__file__).parents[3] / "docs" / "use" / "images"
ESCAPE, ENTER, SHIFT, TAB = "\ue00c", "\ue007", "\ue008", "\ue004"
RIGHT, DOWN = "\ue014", "\ue015"
REFUSED = "Failed to load resource: the server responded with a status of"  # what Chromium says of any of them


@pytest.fixture(scope="module")
def script() -> Script:
    return Script()


@pytest.fixture(scope="module")
def url(script: Script) -> Iterator[str]:
    with scripted.serving(script.app()) as found:
        yield found


@pytest.fixture
def page(chromium: webdriver.Chrome, script: Script, url: str) -> Iterator[Page]:
    """Afterwards nothing was fetched from elsewhere, and the console is empty but for answers that are refusals."""
    from tests.runtime.server.browser import Page

    script.key, script.gone = None, 0
    found = Page(chromium, url)
    found.open()
    found.complaints()
    script.asked.clear()
    yield found
    assert [line for line in found.complaints() if REFUSED not in line] == []
    assert [address for address in found.fetched() if not address.startswith(url)] == []


# ---- files


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(Script().app())


def test_every_file_that_the_page_names_is_served_with_the_policy(client: TestClient) -> None:
    index = client.get("/")
    names = re.findall(r'(?:href|src)="(page/[^"]+)"', index.text)
    modules = {name for name in served_page.assets() if name.endswith(".js")}
    found = [client.get(f"/{name}") for name in [*names, *(f"page/{name}" for name in modules)]]
    assert len(names) >= 5 and {answer.status_code for answer in [index, *found]} == {200}
    assert {answer.headers["content-security-policy"] for answer in [index, *found]} == {served_page.POLICY}
    assert {answer.headers["x-content-type-options"] for answer in found} == {"nosniff"}


def test_a_file_that_the_browser_has_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/page/main.js")
    again = client.get("/page/main.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"] == served_page.POLICY


def test_the_page_needs_no_key_and_what_it_asks_for_does(serving: Callable[..., Running]) -> None:
    url = serving(keys=("secret",)).url
    statuses = [httpx2.get(f"{url}{path}").status_code for path in ("/", "/page/main.js", "/v1/models", "/metrics")]
    assert statuses == [200, 200, 401, 401]


def test_there_is_no_way_out_of_the_folder(client: TestClient) -> None:
    names = ("../page.py", "%2e%2e/page.py", "index.html", "")
    assert {client.get(f"/page/{name}").status_code for name in names} == {404}


def test_the_policy_lets_nothing_in_from_outside_and_no_inline_script() -> None:
    rules = dict(rule.split(" ", 1) for rule in served_page.POLICY.split("; "))
    assert rules["default-src"] == "'none'"
    assert {source for rule in rules.values() for source in rule.split(" ")} <= {"'none'", "'self'", "'script'"}


@pytest.mark.parametrize("name", sorted(served_page.assets()))
def test_no_file_makes_markup_of_a_text_or_names_an_outside_host(name: str) -> None:
    text = served_page.assets()[name].content.decode()
    ways = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\(|new Function|srcdoc|\son\w+=\""
    assert re.findall(ways, text) == []
    assert re.findall(r"https?://(?!www\.w3\.org/(?:2000/svg|1998/Math/MathML))\w+", text) == []
    assert "<style" not in text and re.findall(r"<script(?! (?:type=\"module\" )?src=\"page/)", text) == []
    assert len(text.splitlines()) < 500
    assert max(map(len, text.splitlines())) <= 120 or not name.endswith((".js", ".css"))


# ---- a conversation


def test_a_conversation_is_streamed_sent_whole_and_kept(page: Page, script: Script) -> None:
    assert page.say("quick") == "It is quick."
    assert page.say("Say it again.") == "You said: Say it again."
    roles = ["user", "assistant", "user"]
    assert [message["role"] for message in script.asked[-1]["messages"]] == roles
    assert script.asked[-1]["model"] == "fairytale-10m" and script.asked[-1]["stream"] is True
    figures = page.texts(".message:last-child .figures")[0]
    assert re.fullmatch(r"first token \d+ ms · [\d,.]+ tok/s · \d+ tokens.*", figures)
    page.reload()
    assert page.texts(".said") == ["quick", "Say it again."]
    assert page.texts("#conversation-list .open") == ["quick"]


def test_conversations_stand_beside_each_other(page: Page, script: Script) -> None:
    page.say("quick")
    page.one("#new").click()
    page.say("other")
    assert [message["content"] for message in script.asked[-1]["messages"]] == ["other"]
    assert page.texts("#conversation-list .open") == ["other", "quick"]
    page.click("#conversation-list li:last-child", "quick")
    assert page.texts(".said") == ["quick"]
    for _ in range(2):  # the second press is sure
        page.run("document.querySelector('#conversation-list li:has([aria-current]) .drop').click()")
    assert page.texts("#conversation-list .open") == ["other"] and page.texts(".said") == []


def test_speed_is_told_while_the_answer_comes_and_escape_stops_it(page: Page, script: Script) -> None:
    page.type("slow")
    page.until(lambda: "tok/s" in page.one("#live").text)
    page.press(ESCAPE)
    text = page.answered()
    assert text.startswith("word0 word1") and "stopped" in page.texts(".message:last-child .figures")[0]
    page.until(lambda: script.gone == 1)
    assert page.say("quick") == "It is quick."
    assert script.asked[-1]["messages"][1] == {"role": "assistant", "content": text}


def test_the_stop_button_takes_the_place_of_send(page: Page) -> None:
    page.type("slow")
    page.until(lambda: page.one("#stop").is_displayed())
    assert not page.one("#send").is_displayed()
    page.one("#stop").click()
    page.answered()
    assert page.one("#send").is_displayed()


def test_thoughts_are_folded(page: Page) -> None:
    assert page.say(STORY_OF).strip() == STORY
    thoughts = page.one(".thoughts")
    assert thoughts.text.startswith("Thought for") and "fox" not in thoughts.text
    page.run("document.querySelector('.thoughts summary').click()")
    assert "A fox, then" in page.one(".thoughts").text


def test_a_question_is_edited_and_both_versions_stay(page: Page, script: Script) -> None:
    page.say("quick")
    page.click(".user", "Edit")
    page.press("ly", ENTER)
    assert page.answered() == "You said: quickly"
    assert [message["content"] for message in script.asked[-1]["messages"]] == ["quickly"]
    assert page.texts(".user .versions") == ["‹2/2›"]
    page.click(".user", "‹")
    assert page.texts(".answer .prose")[-1] == "It is quick."
    page.click(".user", "Edit")
    page.press(ESCAPE)
    assert page.texts(".said") == ["quick"] and page.texts(".edit") == []


def test_an_answer_is_tried_again(page: Page, script: Script) -> None:
    page.say("quick")
    page.click(".answer", "Retry")
    page.answered()
    assert len(script.asked) == 2 and script.asked[0] == script.asked[1]
    assert page.texts(".answer .versions") == ["‹2/2›"]


def test_shift_and_enter_break_the_line(page: Page) -> None:
    page.one("#entry").send_keys("one", SHIFT, ENTER, SHIFT, "two", ENTER)
    assert page.answered() == "You said: one\ntwo"


def test_the_system_prompt_and_parameters_go_along(page: Page, script: Script) -> None:
    page.open_panel("parameters")
    assert page.one("#parameter-temperature").get_attribute("placeholder") == "0.8"
    page.one("#system").send_keys("Be brief.")
    page.one("#parameter-temperature").send_keys("0.3")
    page.one("#parameter-seed").send_keys("7")
    page.one("#parameter-stop").send_keys("END")
    page.run("for (const group of document.querySelectorAll('details.group')) group.open = true")
    page.one("#parameter-logit_bias").send_keys('{"42": ')
    assert "not JSON" in page.one("#problem-logit_bias").text
    page.say("quick")
    asked = script.asked[-1]
    assert asked["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (asked["temperature"], asked["seed"], asked["stop"]) == (0.3, 7, ["END"])
    assert "logit_bias" not in asked and "top_p" not in asked
    page.reload()
    assert page.one("#parameter-seed").get_attribute("value") == "7"


# ---- what goes wrong


def test_an_error_says_what_and_where(page: Page) -> None:
    page.say("wrong")
    assert "temperature must be a finite number" in page.one(".fault").text
    page.click(".fault", "Show the field")
    assert page.driver.switch_to.active_element.get_attribute("id") == "parameter-temperature"


def test_a_full_queue_says_when_to_try_again(page: Page) -> None:
    page.say("busy")
    assert "Try again in 3 s" in page.one(".fault").text


def test_what_came_before_an_error_stays(page: Page) -> None:
    assert page.say("breaks") == "You said: breaks"
    assert "the model failed" in page.one(".fault").text


def test_a_server_that_is_gone_is_told(page: Page) -> None:
    conditions = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.driver.execute_cdp_cmd("Network.enable", {})
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", conditions)
    try:
        page.say("quick")
    finally:
        page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", {**conditions, "offline": False})
        page.driver.execute_cdp_cmd("Network.disable", {})
    assert "cannot be reached" in page.one(".fault").text
    assert all("ERR_INTERNET_DISCONNECTED" in line for line in page.complaints())
    page.click(".fault", "Try again")
    assert page.answered() == "It is quick."


def test_a_full_storage_costs_the_keeping_alone(page: Page) -> None:
    page.run("Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError') }")
    assert page.say("quick") == "It is quick."
    assert "storage is full" in page.one("#note").text
    assert page.texts("#conversation-list .open") == ["quick"]


def test_a_key_is_asked_for_where_the_server_wants_one(page: Page, script: Script) -> None:
    assert not page.all("form.field:not([hidden]) #key")
    script.key = KEY
    page.reload()
    assert page.driver.switch_to.active_element.get_attribute("id") == "key"
    page.press("wrong", ENTER)
    page.until(lambda: "not one of" in page.one("#note").text)
    page.one("#key").clear()
    page.one("#key").send_keys(KEY, ENTER)
    page.until(lambda: page.all("#model option"))
    assert page.say("quick") == "It is quick."
    assert KEY not in page.run("return JSON.stringify(localStorage)")


def test_a_hostile_answer_stays_text(page: Page) -> None:
    shown = page.say("hostile")
    written = (
        "<script>window.hacked = 1</script>",
        "<img src=x onerror=",
        "<b onmouseover=",
        "javascript:window.hacked=1",
    )
    assert [text for text in written if text not in shown] == []
    assert page.run("return window.hacked") is None
    assert page.all(".message script, .message img, .message b, .message [onmouseover]") == []
    links = page.run("return [...document.querySelectorAll('.message a')].map((a) => a.getAttribute('href'))")
    assert links == ["https://example.invalid/", "https://example.invalid/tracker.png", "https://example.invalid/auto"]
    page.reload()
    assert page.run("return window.hacked") is None


# ---- completion, experts, machine


def test_completion_shows_probabilities_and_goes_on_from_another_token(page: Page, script: Script) -> None:
    page.mode("complete")
    page.one("#prompt").send_keys("Once upon a time", ENTER)
    page.until(lambda: "cut at the length limit" in page.one("#complete-live").text)
    assert page.one("#completion").text.startswith("Once upon a time there lived a miller")
    asked = script.asked[-1]
    assert (asked["prompt"], asked["logprobs"], asked["max_tokens"]) == ("Once upon a time", 5, 128)
    page.one(".token").click()
    assert page.one("#token").text.split()[:9] == ["␣there", "93", "%", "␣a", "4.2", "%", "␣its", "1.4", "%"]
    page.press(RIGHT, ENTER)  # to the next token, and into its card
    assert page.driver.switch_to.active_element.text.startswith("␣was")
    page.press(ENTER)
    page.until(lambda: len(script.asked) == 2 and not page.one("#complete-stop").is_displayed())
    assert script.asked[-1]["prompt"] == "Once upon a time there was"
    assert page.texts(".token.taken") == [" was"]


def test_experts_of_the_last_answer_are_drawn(page: Page, script: Script) -> None:
    page.open_panel("experts")
    page.say("quick")
    assert script.asked[-1]["experts"] is True
    assert page.texts("#experts p")[0] == "142 tokens, each through 4 of 16 experts in every layer"
    cells = "const c = document.querySelector('canvas'), all = c.getContext('2d').getImageData(30, 0, 250, c.height)"
    assert page.run(f"{cells}; return new Set(new Uint32Array(all.data.buffer)).size") > 20
    assert len(page.texts("#experts tbody tr")) == 26


def test_a_model_that_does_not_tell_its_experts_answers_all_the_same(page: Page, script: Script) -> None:
    page.open_panel("experts")
    assert page.say("uncounted") == "You said: uncounted"
    assert page.texts("#experts p")[0] == "the model has no experts that could be counted"
    page.say("quick")
    assert "experts" not in script.asked[-1]


def test_the_state_of_the_machine_is_of_the_model_that_is_chosen(page: Page) -> None:
    page.open_panel("machine")
    page.until(lambda: page.all("#machine dd"))
    facts = dict(zip(page.texts("#machine dt"), page.texts("#machine dd"), strict=True))
    assert facts["Texts in the batch"] == "3 of 16" and facts["Requests waiting"] == "0"
    assert facts["Pages of the cache in use"] == "194 of 512" and facts["Of the process"] == "193 MB"
    assert facts["Answers"] == "42"


# ---- for everybody


def test_everything_that_takes_input_has_a_name(page: Page) -> None:
    page.say("quick")
    page.open_panel("parameters")
    page.run("for (const group of document.querySelectorAll('details')) group.open = true")
    shown = (
        "[...document.querySelectorAll('button, input, select, textarea, summary')].filter((e) => e.checkVisibility())"
    )
    named = "(e) => e.labels?.length || e.ariaLabel || (e.localName !== 'select' && e.textContent.trim())"
    assert page.run(f"return {shown}.length") > 25
    assert page.run(f"return {shown}.filter((e) => !({named})(e)).map((e) => e.outerHTML)") == []
    assert page.one("#status").get_attribute("aria-live") == "polite"
    assert page.one("#status").get_attribute("textContent").startswith("Answer: first token")


def test_the_focus_is_seen_and_the_skip_link_comes_first(page: Page) -> None:
    assert page.run("return document.querySelector('a, button, input, select, textarea').className") == "skip"
    page.run("document.querySelector('.skip').focus()")
    assert page.one(".skip").rect["x"] >= 0
    page.press(TAB)
    outline = page.run("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


CONTRAST = """
const canvas = Object.assign(document.createElement("canvas"), {width: 1, height: 1});
const context = canvas.getContext("2d", {willReadFrequently: true});
const light = (...layers) => {  // of what these colours make above each other
  for (const color of layers) { context.fillStyle = color; context.fillRect(0, 0, 1, 1); }
  const parts = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => v / 255);
  return parts.map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
};
return arguments[0].map((css) => {
  const papers = [], style = getComputedStyle, text = document.querySelector(css);
  for (let node = text; node; node = node.parentElement) papers.unshift(style(node).backgroundColor);
  const paper = light(...papers), ink = light(style(text).color);
  return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
});
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_in_both_themes(page: Page, scheme: str) -> None:
    page.prefer(scheme)
    page.say("wrong")
    texts = [".fault > p", ".said", "#keys", "#send", "#conversation-list .open", ".message .plain"]
    assert min(page.run(CONTRAST, texts)) >= 4.5
    paper = "return getComputedStyle(document.body).backgroundColor"
    before = page.run(paper)
    page.one("#theme").click()
    switched = page.run(paper)
    assert switched != before
    page.reload()
    assert page.run(paper) == switched
    page.one("#theme").click()
    assert page.run(paper) == before


def test_a_phone_shows_everything_without_scrolling_sideways(page: Page) -> None:
    page.size(360, 740)
    page.say(EXPLAIN)
    wide = "return [document.documentElement.scrollWidth, document.querySelector('#scroll').scrollWidth]"
    assert page.run(wide) == [360, 360]
    assert not page.one("#conversations").is_displayed()
    page.one("[data-opens=conversations]").click()
    assert page.one("#conversations").is_displayed()
    assert page.run("return document.querySelector('main').inert")
    page.press(ESCAPE)
    assert not page.one("#conversations").is_displayed() and not page.run("return document.querySelector('main').inert")
    page.open_panel("parameters")
    assert page.run("return document.querySelector('#inspector').getBoundingClientRect().width") <= 320
    page.one("[data-closes=inspector]").click()
    buttons = [each.rect for each in page.all(".bar button, .bar select, #send") if each.is_displayed()]
    assert all(rect["x"] >= 0 and rect["x"] + rect["width"] <= 360 for rect in buttons)


def test_pictures_for_the_docs(page: Page, request: pytest.FixtureRequest) -> None:
    def take(name: str) -> None:
        page.until(lambda: page.run("return document.fonts.status") == "loaded")
        if request.config.getoption("--update-golden"):
            IMAGES.mkdir(exist_ok=True)
            page.driver.save_screenshot(str(IMAGES / name))
        assert (IMAGES / name).stat().st_size < 200_000

    page.size(1200, 860)
    page.open_panel("experts")
    for said in ("Ten names for a sailing boat", "What is a latent cache?", STORY_OF):
        page.one("#new").click()
        page.say(said)
    page.say(EXPLAIN)
    page.one("#entry").click()  # the pointer leaves the button
    page.run("document.querySelector('.message:nth-last-child(2)').scrollIntoView()")
    take("page-light.png")
    page.prefer("dark")
    page.open_panel("machine")
    page.mode("complete")
    page.one("#prompt").send_keys("Once upon a time", ENTER)
    page.until(lambda: "cut at the length limit" in page.one("#complete-live").text)
    page.run("document.querySelectorAll('.token')[7].focus()")
    page.until(lambda: page.all("#machine dd"))
    take("page-dark.png")
    page.prefer("light")
    page.size(360, 720, 1.5)
    page.mode("chat")
    page.run("document.querySelector('.message:nth-last-child(2)').scrollIntoView()")
    take("page-narrow.png")
    assert MARKDOWN.split("\n", 1)[0].split("*", 1)[0] in page.one(".message:last-child article > .prose").text


def test_the_page_and_the_server_understand_each_other(chromium: webdriver.Chrome, served: Running) -> None:
    from tests.runtime.server.browser import Page

    page = Page(chromium, f"{served.url}/")
    page.open()
    assert page.texts("#model option") == ["tiny"]
    policy = "return fetch('/').then((answer) => answer.headers.get('content-security-policy'))"
    assert page.run(policy) == served_page.POLICY
    page.open_panel("parameters")
    page.one("#parameter-max_completion_tokens").send_keys("12")
    page.one("#parameter-seed").send_keys("3")
    page.run("document.querySelector('#parameter-ignore_eos').click()")
    page.open_panel("experts")
    page.say("Hello")
    assert "12 tokens · cut at the length limit" in page.texts(".message:last-child .figures")[0]
    assert page.texts("#experts p")[0] == "11 tokens, each through 3 of 8 experts in every layer"
    page.mode("complete")
    page.open_panel("parameters")
    page.one("#parameter-max_tokens").send_keys("9")
    page.one("#prompt").send_keys("Once", ENTER)
    page.until(lambda: "9 tokens" in page.one("#complete-live").text)
    page.run("document.querySelectorAll('.token')[0].focus()")
    assert len(page.texts("#token .choice")) >= 2  # parts of characters share a name
    page.open_panel("machine")
    page.until(lambda: page.all("#machine dd"))
    facts = dict(zip(page.texts("#machine dt"), page.texts("#machine dd"), strict=True))
    assert {"Texts in the batch", "Pages of the cache in use", "Of the process", "First token, mean"} <= facts.keys()
    page.open_panel("parameters")
    page.one("#parameter-top_p").send_keys("7")
    page.mode("chat")
    page.say("Hello")
    assert "top_p" in page.one(".fault").text
    assert [line for line in page.complaints() if REFUSED not in line] == []
