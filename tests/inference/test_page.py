"""The page at / in a real Chromium: what is typed is heard while it is made, and nothing else happens."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Service, program, token, wait_for
from gate import Running
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select

LONG = "The sun came up over the hills. Birds began to sing, loud and clear. " * 8


class Page:
    def __init__(self, folder: Path) -> None:
        profile, self.downloads = folder / "profile", folder / "downloads"
        options = webdriver.ChromeOptions()
        options.binary_location = program("chromium")
        for flag in (
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
            "--window-size=1100,1200", f"--user-data-dir={profile}",
        ):  # fmt: skip
            options.add_argument(flag)
        options.add_experimental_option("prefs", {"download.default_directory": str(self.downloads)})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        service = webdriver.ChromeService(program("chromedriver"))
        self.browser = webdriver.Chrome(options=options, service=service)

    def open(self, url: str) -> None:
        self.browser.get(url)
        self.console()

    def __getitem__(self, id: str) -> WebElement:
        return self.browser.find_element(By.ID, id)

    def data(self, name: str) -> str:
        return str(self.browser.execute_script(f"return document.body.dataset.{name} ?? ''"))

    def until(self, state: str) -> None:
        wait_for(lambda: self.data("state") == state, f"the page is {state}: {self['error'].text}")

    def type(self, id: str, text: str) -> None:
        self[id].clear()
        self[id].send_keys(text)

    def console(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser")]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    page = Page(tmp_path_factory.mktemp("chromium"))
    yield page
    page.browser.quit()


def test_what_is_typed_is_heard(page: Page, service: Service) -> None:
    page.open(service.url)
    assert page.data("state") == "idle"
    page.type("text", "Two small birds.")
    assert page["count"].text == "16 characters"
    page.type("token", token())
    page["text"].send_keys(Keys.CONTROL, Keys.ENTER)
    page.until("done")
    assert page["error"].text == ""
    assert float(page.data("peak")) > 0.1
    expected = len(service.speak("Two small birds.").content) / 2 / 22050
    assert float(page.data("played")) == pytest.approx(expected, abs=0.3)
    assert page["seconds"].text == f"{expected:.2f} s"
    assert page["ttfa"].text.split()[1] in ("ms", "s")
    assert float(page["rtf"].text) >= 0
    assert (page["engine"].text, page["spoken-by"].text) == ("onnx_voice", "joe")
    assert page["cache"].text in ("miss", "hit")
    assert not page["tags"].is_displayed()  # this engine performs none
    page["download"].click()
    wait_for((page.downloads / "speech.wav").exists, "the download is there")
    downloaded = (page.downloads / "speech.wav").read_bytes()
    assert downloaded == service.speak("Two small birds.", response_format="wav").content
    assert page.console() == []


def test_a_wrong_token_and_then_a_right_one(page: Page, service: Service) -> None:
    page.open(service.url)
    page.type("token", "wrong")
    page["speak"].click()
    page.until("error")
    assert page["error"].text == "The token cannot be read as a JWT."
    assert all("401" in line for line in page.console())
    page.type("token", token())
    page["speak"].click()
    page.until("done")
    assert not page["error"].is_displayed()
    assert page.console() == []
    assert page.browser.execute_script("return localStorage.length + sessionStorage.length") == 0


def test_stop_stops(page: Page, service: Service) -> None:
    page.open(service.url)
    page.type("token", token())
    page.browser.execute_script("document.getElementById('text').value = arguments[0]", LONG)
    page["speak"].click()
    page.until("speaking")
    wait_for(lambda: float(page.data("peak") or 0) > 0.1, "something is heard")
    page["stop"].click()
    page.until("idle")
    assert float(page.data("played")) < 20
    assert page["speak"].is_enabled()
    assert not page["stop"].is_enabled()
    page.type("text", "Again.")
    page["speak"].click()
    page.until("done")
    assert page.console() == []


def test_tags_are_offered_where_the_engine_performs_them(page: Page) -> None:
    running = Running().get_ready()
    try:
        page.open(str(running.http.base_url))
        wait_for(lambda: page["tags"].is_displayed(), "the tags are there, without a token")
        assert not page["token"].is_displayed()
        page.type("text", "ab")
        page["text"].send_keys(Keys.ARROW_LEFT)
        page["tags"].find_element(By.XPATH, ".//button[text()='sigh']").click()
        assert page["text"].get_property("value") == "a<sigh> b"
        assert Select(page["voice"]).first_selected_option.text == "Tone (en)"
        page["speak"].click()
        page.until("waiting")
        running.engine.permits.release(1)
        page.until("speaking")  # while the second word has not been made
        running.engine.permits.release(1)
        page.until("done")
        assert page.console() == []
    finally:
        running.stop()


def test_it_fits_a_phone_and_every_field_has_a_label(page: Page, service: Service) -> None:
    page.browser.set_window_size(500, 900)
    page.open(service.url)
    try:
        wider = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        page.browser.execute_script("document.body.style.width = '340px'")
        assert page.browser.execute_script(wider) == 0
        for field in page.browser.find_elements(By.CSS_SELECTOR, "input, select, textarea"):
            assert page.browser.execute_script("return arguments[0].labels.length", field) == 1
        page["text"].send_keys(Keys.TAB)
        assert page.browser.switch_to.active_element.get_attribute("id") == "speed"  # the voice needs a token
    finally:
        page.browser.set_window_size(1100, 1200)


def test_the_policy_lets_nothing_else_in(page: Page, service: Service) -> None:
    page.open(service.url)
    page.browser.execute_script(
        "const script = document.createElement('script'); script.textContent = 'window.foreign = 1';"
        "document.body.append(script)"
    )
    assert page.browser.execute_script("return window.foreign") is None
    assert any("Content Security Policy" in line for line in page.console())


def test_it_can_be_turned_off() -> None:
    running = Running(page=False)
    try:
        assert running.http.get("/").status_code == 404
    finally:
        running.stop()
