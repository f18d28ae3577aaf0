"""The page in a real browser, with real pods, and a drain that is really done.

AUTOPOD_PICTURE=1 lets it write docs/status.png.
"""

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    StaleElementReferenceException,
    TimeoutException,
)
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from autopod import hosts
from autopod.status import store
from launcher.places import Places
from tests.kernel.autopod.repository import NEW, OLD, install, new_kernel

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces", "browser"), pytest.mark.slow]

PICTURE = Path(__file__).parents[3] / "docs/status.png"
PROGRAM = "exec 3<>/tmp/wait; while read -t 0.2 -u 3 line || true; do :; done"
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--window-size=1280,1000", "--force-device-scale-factor=1",
)  # fmt: skip
INSTALL = "#!/bin/sh\ncp {0}/status.new {0}/status\n"
ACT = '[act]\ninstall = ["{0}/install", "{{packages}}"]\n'


@pytest.fixture
def browser(tmp_path):
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'browser'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


class Person:
    """Sees and clicks."""

    def __init__(self, driver):
        self.driver = driver

    def sees(self, place, text):
        """Wait until the part of the page *place*, a CSS selector, shows *text*."""
        try:
            WebDriverWait(self.driver, 90).until(lambda _: text in self.text(place))
        except TimeoutException:
            pytest.fail(f"{text!r} is not in {place}: {self.text(place)!r}")

    def text(self, place):
        script = "return document.querySelector(arguments[0])?.innerText ?? ''"
        return self.driver.execute_script(script, place)

    def clicks(self, place):
        def click(driver):
            [found] = driver.find_elements(By.CSS_SELECTOR, place) or [None]
            if found is None or not found.is_enabled():
                return False
            found.click()
            return True

        moves = (StaleElementReferenceException, ElementClickInterceptedException)
        WebDriverWait(self.driver, 90, ignored_exceptions=moves).until(click, place)

    def types(self, place, text):
        self.driver.find_element(By.CSS_SELECTOR, place).send_keys(text)

    def takes_picture(self, file):
        """Of the whole page, however long."""
        tall = self.driver.execute_script("return document.documentElement.scrollHeight")
        self.driver.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
        clip = {"x": 0, "y": 0, "width": 1280, "height": tall, "scale": 1}
        whole = {"captureBeyondViewport": True, "clip": clip}
        picture = self.driver.execute_cdp_cmd("Page.captureScreenshot", whole)["data"]
        file.write_bytes(base64.b64decode(picture))


@pytest.fixture
def pods(host, archive, prefix, debian_root):
    """Three, of which one has old software inside."""
    old = prefix / "old"
    (old / "var/lib/dpkg").mkdir(parents=True)
    status = archive.installed(("libthing1", "1.0"))
    hostile = status.replace("Version: 1.0", "Version: 0.9<b id=owned>")
    (old / "var/lib/dpkg/status").write_text(hostile)
    for pod, base in (("db", []), ("mail", ["--base", old]), ("web", [])):
        host.run("autopod", "add", pod, *base, "--base", debian_root)
        host.run("autopod", "addproc", pod, "/bin/bash", "-c", f"mkfifo /tmp/wait; {PROGRAM}")
    return host


def knows_another(host, prefix):
    """Of the other one nothing is there but its file."""
    host.run("autopod", "host", "init", "--name", "first", "--address", "127.0.0.1")
    second = Places(prefix / "second")
    hosts.init(second, "second", "127.0.0.1:9")
    certificate = hosts.own_certificate(second).read_text()
    hosts.save(Places(prefix), "second", hosts.Host("127.0.0.1:9", certificate))


def look(prefix):
    subprocess.run([sys.executable, "-m", "autopod.status.cycle"], check=True)


def test_an_administrator_looks_and_drains(pods, archive, page, prefix, browser):
    policy = prefix / "etc/autopod/autopod.toml"
    policy.write_text(policy.read_text() + ACT.format(prefix))
    (prefix / "install").write_text(INSTALL.format(prefix))
    (prefix / "install").chmod(0o755)
    look(prefix)
    knows_another(pods, prefix)
    page.open()
    person = Person(browser)
    logs_in(person, page)
    person.sees("#host", "All is well")
    for pod in ("db", "mail", "web"):
        person.sees("#pods", pod)

    new_kernel(archive)
    archive.add("libthing1", "1.1~deb12u1")
    archive.publish()
    install(prefix / "status.new", archive, NEW, "6.1.158-1")
    look(prefix)
    sees_what_is_to_be_done(person)
    holds_the_host(person, page)
    moves_a_pod_in_vain(person)
    drains(person, pods)
    assert [row for row in browser.get_log("browser") if "Content Security" in row["message"]] == []
    if os.environ.get("AUTOPOD_PICTURE"):
        person.takes_picture(PICTURE)

    person.clicks("[data-key=look]")
    person.sees("#host", f"kernel {NEW} is installed, {OLD} runs")

    browser.set_window_size(390, 844)
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= browser.execute_script("return innerWidth"), "it fits on a phone"
    person.clicks("#leave")
    WebDriverWait(browser, 60).until(lambda one: one.current_url.endswith("/login#again"))


def logs_in(person, page):
    person.driver.get(page.url)
    assert person.driver.current_url.endswith("/login")
    person.types("#token", "not the token")
    person.clicks("button")
    person.sees("#said", "that is not the token")
    person.driver.find_element(By.ID, "token").clear()
    person.types("#token", page.tokens.admin)
    person.clicks("button")
    person.sees("#live", "live")


def sees_what_is_to_be_done(person):
    """Without touching the page."""
    person.sees("#host", "A reboot is needed")
    person.sees("#host", OLD)
    person.sees("#host", "report only")
    person.sees("#updates", f"linux-image-{NEW}")
    person.sees("#updates", "6.1.90-1 → 6.1.158-1")
    person.sees("#pods", "1 to update")
    person.clicks("#pods summary")
    person.sees("#pods", "0.9<b id=owned> → 1.1~deb12u1")
    assert person.driver.find_elements(By.ID, "owned") == []
    person.clicks("#pods summary")


def holds_the_host(person, page):
    person.clicks("[data-key=hold]")
    person.types("#reason", "audit until <b>Friday</b>")
    person.clicks("#dialog-yes")
    person.sees("#host", "audit until <b>Friday</b>")
    with store.opened(page.places) as history:
        assert history.hold().reason == "audit until <b>Friday</b>"
    person.clicks("[data-key=unhold]")
    person.sees("#acts", "Hold…")


def moves_a_pod_in_vain(person):
    """Nobody answers there; the page has that in the command's own words."""
    person.clicks("[data-key='move web']")
    person.clicks("#dialog-yes")
    person.sees("#jobs", "autopod migrate web second")
    person.sees("#jobs", "exit status 1")
    person.sees("#jobs", "autopod: error: ")


def drains(person, host):
    """Look at the plan, drain, and call it off."""
    person.clicks("[data-key=drain]")
    person.sees("#plan", "libthing1=1.1~deb12u1")
    person.sees("#plan", f"linux-image-{NEW}=6.1.158-1")
    assert {pod["processes"] for pod in host.pods().values()} == {1}, "nothing was touched"
    person.clicks("#dialog-yes")
    person.sees("#moving", f"the host can be rebooted, into {NEW}")
    person.sees("#moving", "mail: on disk")
    assert {pod["processes"] for pod in host.pods().values()} == {0}
    person.clicks("[data-key=undo]")
    person.clicks("#dialog-yes")
    person.sees("#timeline", "web runs again")
    assert {pod["processes"] for pod in host.pods().values()} == {1}
