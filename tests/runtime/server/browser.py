"""Chromium without a window, and a page in it as a person uses it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tests.waiting import PATIENCE

_ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",  # which root cannot have
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--lang=en",
)


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    options = Options()
    options.binary_location = shutil.which("chromium") or ""
    for argument in _ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver = driver
        self.url = url

    # ---- the browser

    def open(self) -> None:
        """As somebody who was never here, on a wide screen, in light."""
        if self.driver.current_url.startswith(self.url):  # the page that is left must not save anything any more
            self.run("localStorage.clear(); sessionStorage.clear(); Storage.prototype.setItem = () => {}")
        self.size(1200, 800)
        self.prefer("light")
        self.reload()

    def reload(self) -> None:
        self.driver.get(self.url)
        self.until(lambda: self.all("#model option") or not self.one("#note").get_attribute("hidden"))

    def size(self, width: int, height: int, scale: float = 1) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def prefer(self, scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}, {"name": "hover", "value": "hover"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def run(self, script: str, *given: Any) -> Any:
        return self.driver.execute_script(script, *given)

    def module(self, name: str, script: str, *given: Any) -> Any:
        """What `script` returns, which has the module as `it` and the arguments as `given`."""
        told = f"import('{self.url}page/{name}').then(async (it) => {{ {script} }})"
        begin = "const done = arguments[arguments.length - 1], given = [...arguments];"
        return self.driver.execute_async_script(f"{begin} {told}.then(done, (error) => done(`${{error}}`))", *given)

    def until(self, true: Callable[[], Any]) -> Any:
        ignored = (StaleElementReferenceException,)
        return WebDriverWait(self.driver, PATIENCE, 0.05, ignored).until(lambda _: true())

    def complaints(self) -> list[str]:
        """What the console has since the last time."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]

    def fetched(self) -> set[str]:
        """Addresses that the page asked for; what its policy keeps it from asking for is a complaint."""
        return set(self.run("return performance.getEntriesByType('resource').map((entry) => entry.name)"))

    # ---- the page

    def one(self, css: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def all(self, css: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def texts(self, css: str) -> list[str]:
        return list(self.run("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", css))

    def press(self, *keys: str) -> None:
        """To whatever has the focus."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def button(self, within: str, text: str) -> WebElement:
        return next(button for button in self.all(f"{within} button") if button.text == text)

    def click(self, within: str, text: str) -> None:
        self.run("arguments[0].click()", self.button(within, text))  # also where it shows only under a pointer

    def type(self, text: str) -> None:
        self.one("#entry").send_keys(text, Keys.ENTER)

    def say(self, text: str) -> str:
        """The whole answer."""
        self.type(text)
        return self.answered()

    def answered(self) -> str:
        """The last answer, once it is there."""
        done = "return document.querySelector('#stop').hidden && !document.querySelector('.running')"
        self.until(lambda: self.run(done))
        return self.texts(".message:last-child article > .prose")[-1]

    def open_panel(self, name: str) -> None:
        if not self.one("#inspector").is_displayed():
            self.one("[data-opens=inspector]").click()
        self.one(f"#tab-{name}").click()

    def mode(self, name: str) -> None:
        self.run("arguments[0].click()", self.one(f"input[name=mode][value={name}]"))
