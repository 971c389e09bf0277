"""A person opens the report in Chromium, at a desk and on a phone, with no network."""

from __future__ import annotations

import base64
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from autopeft.dashboards.page import render

from autopeft.domain.candidate import Insertion
from autopeft.domain.results import Front, RunResults
from autopeft.domain.trial import TrialStatus
from tests.unit import dashboard_runs as runs
from tests.unit.test_dashboard_layer_scores import scored

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
DESKTOP, PHONE = (1280, 900), (390, 844)
FIGURES = {"front", "history", "importance", "layers", "parallel"}
THREE = ("accuracy", "train_peak_bytes", "latency_s")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM.exists() and DRIVER.exists()), reason="Chromium and its driver are not installed"),
]


def mixed(results: RunResults) -> RunResults:
    """The same run with a mix of four methods in each trial."""
    trials = []
    for one in results.trials:
        parts = [
            Insertion(method=method, layers=one.trial.candidate.insertions[0].layers, modules=(), settings={"size": 8})
            for method in ("serial", "parallel", "prefix", "lora-of-a-long-name")
        ]
        candidate = one.trial.candidate.model_copy(update={"insertions": tuple(parts)})
        trials.append(replace(one, trial=one.trial.model_copy(update={"candidate": candidate})))
    return replace(results, trials=tuple(trials), front=Front.of(results.objectives, trials))


@dataclass
class Browser:
    """One Chromium and what a test asks of it."""

    driver: Any

    def open(self, path: Path, size: tuple[int, int] = DESKTOP, scheme: str = "light") -> None:
        width, height = size
        self.driver.get("about:blank")
        self.driver.get_log("browser")
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.driver.get(path.as_uri())
        self.until(lambda: self.run("return document.documentElement.dataset.ready") == "yes", 60)

    def command(self, name: str, **arguments: Any) -> Any:
        return self.driver.execute_cdp_cmd(name, arguments)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def click(self, selector: str) -> None:
        """A real click at the middle of the element."""
        element = self.driver.find_element("css selector", selector)
        self.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
        element.click()

    def texts(self, selector: str) -> list[str]:
        return [
            text.strip()
            for text in self.run(
                "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)", selector
            )
        ]

    def until(self, holds: Callable[[], object], seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, "the page did not get there in time"
            time.sleep(0.05)

    def errors(self) -> list[str]:
        """Errors in the console; a software renderer's advice to the driver is none."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def screenshot(self, path: Path, width: int, height: int) -> None:
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = self.command("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    selenium = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    profile = tmp_path_factory.mktemp("profile")
    options = selenium.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = selenium.Chrome(options=options, service=Service(str(DRIVER)))
    driver.set_page_load_timeout(120)
    yield Browser(driver)
    driver.quit()
    shutil.rmtree(profile, ignore_errors=True)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render(runs.results(70, THREE), [f"Note {runs.SCRIPT}"]), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_every_figure_is_drawn_without_errors_or_sideways_scrolling(
    browser: Browser, report: Path, size: tuple[int, int], scheme: str
) -> None:
    browser.open(report, size, scheme)
    drawn = browser.run(
        """return [...document.querySelectorAll("[data-figure]")]
             .filter((node) => node.dataset.drawn && node.querySelector("svg.main-svg"))
             .map((node) => node.dataset.figure)"""
    )
    assert set(drawn) == FIGURES
    assert "WebGL" not in browser.run("return document.querySelector('#figure-parallel').textContent")
    assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.run("return performance.getEntriesByType('resource').length") == 0
    assert browser.errors() == []
    colour = browser.run("return document.querySelector('#figure-front')._fullLayout.font.color")
    assert colour == {"light": "#1f2430", "dark": "#e7e9ee"}[scheme]


def test_on_a_phone_the_cells_of_the_layers_have_the_width_of_the_panel(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(render(mixed(runs.results(30))), encoding="utf-8")
    plot = """const node = document.querySelector("#figure-layers"), layout = node._fullLayout;
              return [layout.xaxis._length / node.parentElement.clientWidth,
                      layout.annotations.map((one) => one.text), node.parentElement.scrollWidth, innerWidth]"""
    browser.open(path, PHONE)
    share, above, width, screen = browser.run(plot)
    assert share > 0.85
    assert width < screen
    assert len(above) == len(mixed(runs.results(30)).front.members)
    assert all("serial" in text for text in above)
    beyond = browser.run(
        """const box = document.querySelector("#figure-layers").parentElement.getBoundingClientRect();
           return [...document.querySelectorAll("#figure-layers .annotation-text")]
             .filter((one) => one.getBoundingClientRect().right > box.right).length"""
    )
    assert beyond == 0
    browser.open(path, DESKTOP)
    assert browser.run(plot)[1] == []


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_nothing_of_the_importance_of_layers_is_cut(browser: Browser, tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "report.html"
    path.write_text(render(scored(*(one.trial.number for one in runs.results().front.members))), encoding="utf-8")
    browser.open(path, size)
    beyond, texts, scrolls = browser.run(
        """const node = document.querySelector("#figure-layer-scores"), box = node.getBoundingClientRect();
           const texts = [...node.querySelectorAll("svg text")].filter((one) => one.textContent);
           const cut = texts.filter((one) => { const at = one.getBoundingClientRect();
             return at.top < box.top - 1 || at.bottom > box.bottom + 1
               || at.left < box.left - 1 || at.right > box.right + 1; });
           const scroll = node.parentElement;
           return [cut.map((one) => one.textContent), texts.map((one) => one.textContent),
                   scroll.scrollWidth > scroll.clientWidth]"""
    )
    assert {"Layer", "Optimiser steps", "Importance", "2", "20"} <= set(texts)
    assert beyond == []
    assert not scrolls


def test_a_finger_moves_a_wide_figure_sideways_and_a_hint_says_so(browser: Browser, report: Path) -> None:
    browser.open(report, PHONE)
    state = """const box = document.querySelector("#figure-parallel").parentElement;
               return [box.previousElementSibling.hidden, box.classList.contains("more"),
                       box.scrollLeft, box.scrollWidth - box.clientWidth]"""
    hidden, more, left, beyond = browser.run(state)
    assert (hidden, more, left) == (False, True, 0)
    assert beyond > 100
    assert browser.run("return document.querySelector('.panel-layers .hint').hidden")
    browser.run("document.querySelector('#figure-parallel').scrollIntoView({block: 'center', behavior: 'instant'})")
    x, y = browser.run(
        """const box = document.querySelector("#figure-parallel").getBoundingClientRect();
           return [300, box.top + box.height / 2]"""
    )
    browser.command("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
    for step in range(1, 11):
        browser.command("Input.dispatchTouchEvent", type="touchMove", touchPoints=[{"x": x - 15 * step, "y": y}])
    browser.command("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    browser.until(lambda: browser.run(state)[2] > 50)
    browser.run("document.querySelector('#figure-parallel').parentElement.scrollLeft = 1e6")
    browser.until(lambda: browser.run(state)[:2] == [False, False])
    assert browser.errors() == []


def test_no_script_of_a_trial_runs_and_no_button_uploads(browser: Browser, report: Path) -> None:
    browser.open(report)
    assert browser.run("return document.querySelectorAll('img, iframe').length") == 0
    assert "Note <script>alert(1)</script>" in browser.texts(".note")
    tools = browser.run("return [...document.querySelectorAll('.modebar-btn')].map((one) => one.dataset.title)")
    assert tools
    assert not any("share" in tool.lower() or "cloud" in tool.lower() for tool in tools)
    assert browser.errors() == []


def test_filtering_shows_one_status_and_all_again(browser: Browser, report: Path) -> None:
    browser.open(report)
    found = {one.trial.number: one.trial.status for one in runs.results(70, THREE).trials}
    browser.click('[data-filter="crashed"]')
    crashed = [number for number, status in found.items() if status is TrialStatus.CRASHED]
    assert browser.texts("#trial-rows td:first-child") == [str(number) for number in crashed]
    assert set(browser.texts("#trial-rows td:nth-child(2)")) == {"crashed"}
    assert browser.texts('[data-filter][aria-pressed="true"]') == [f"Crashed {len(crashed)}"]
    browser.click('[data-filter=""]')
    assert len(browser.texts("#trial-rows tr.row")) == 50
    browser.click("#trial-more")
    assert len(browser.texts("#trial-rows tr.row")) == 70


def test_sorting_a_column_goes_up_then_down_and_keeps_gaps_last(browser: Browser, report: Path) -> None:
    browser.open(report)
    shown = [one.values[0] for one in runs.results(70, THREE).trials if one.values is not None]
    for direction in ("ascending", "descending"):
        browser.click('[data-column="2"]')
        assert browser.run("return document.querySelectorAll('#trials th')[2].getAttribute('aria-sort')") == direction
        cells = browser.texts("#trial-rows td:nth-child(3)")
        expected = [f"{100 * value:.1f} %" for value in sorted(shown, reverse=direction == "descending")]
        assert cells[: len(expected)] == expected[:50]
        assert set(cells[len(expected) :]) <= {"\u2013"}


def test_searching_finds_a_reason(browser: Browser, report: Path) -> None:
    browser.open(report)
    browser.driver.find_element("css selector", "#trial-search").send_keys("worker died")
    browser.until(lambda: set(browser.texts("#trial-rows td:nth-child(2)")) == {"lost"})


def test_a_failure_opens_by_keyboard_and_shows_its_reason_as_text(browser: Browser, report: Path) -> None:
    browser.open(report)
    browser.click('[data-filter="crashed"]')
    button = browser.driver.find_element("css selector", "#trial-rows button")
    assert button.get_attribute("aria-expanded") == "false"
    button.send_keys("\ue007")
    assert browser.texts(".detail .reason") == [f"exception: {runs.FAILURES[TrialStatus.CRASHED][1]}"]
    assert browser.texts(".detail pre")[0].startswith("Traceback")
    opened = browser.driver.find_element("css selector", "#trial-rows button")
    assert opened.get_attribute("aria-expanded") == "true"
    assert browser.driver.switch_to.active_element == opened
    browser.click("#trial-rows button")
    assert browser.texts(".detail") == []
    assert browser.errors() == []


def test_progress_switches_between_trials_and_time(browser: Browser, report: Path) -> None:
    browser.open(report)
    title = "return document.querySelector('#figure-history')._fullLayout.xaxis.title.text"
    assert browser.run(title) == "Trials ended"
    browser.click('[data-panel="history"][data-view="1"]')
    browser.until(lambda: browser.run(title) == "Time since the start (min)")
    assert browser.texts('.panel-history [aria-pressed="true"]') == ["Over time"]
    browser.click('[data-panel="front"][data-view="1"]')
    browser.until(
        lambda: (
            browser.run("return document.querySelector('#figure-front')._fullLayout.xaxis.title.text") == "Latency (ms)"
        )
    )
    assert browser.errors() == []


def test_a_recommended_point_leads_to_its_row(browser: Browser, report: Path) -> None:
    browser.open(report)
    browser.click('[data-filter="crashed"]')
    number = browser.run("return document.querySelector('.card .link').dataset.trial")
    browser.click(".card .link")
    assert browser.run("return document.querySelector('.detail').dataset.detail") == number
    assert browser.run("return document.activeElement.closest('tr').dataset.trial") == number
    assert browser.texts('[data-filter][aria-pressed="true"]') == ["All 70"]


def test_a_point_names_its_trial_under_the_mouse_and_opens_it_at_a_click(browser: Browser, report: Path) -> None:
    browser.open(report)
    place = browser.run(
        """const node = document.querySelector("#figure-front");
           node.scrollIntoView({block: "center", behavior: "instant"});
           const trace = node._fullData.find((one) => one.name === "Front");
           const x = trace.x[0], y = trace.y[0], box = node.getBoundingClientRect();
           const {xaxis, yaxis} = node._fullLayout;
           return [box.left + xaxis._offset + xaxis.l2p(x), box.top + yaxis._offset + yaxis.l2p(y),
                   trace.customdata[0]];"""
    )
    x, y, number = place
    browser.command("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    browser.until(lambda: any(f"Trial {number}" in text for text in browser.texts("#figure-front .hovertext")))
    for kind in ("mousePressed", "mouseReleased"):
        browser.command("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    browser.until(lambda: browser.texts(".detail"))
    assert browser.run("return document.querySelector('.detail').dataset.detail") == str(number)


@pytest.mark.parametrize(
    ("count", "kinds"),
    [(0, [TrialStatus.COMPLETE]), (1, [TrialStatus.COMPLETE]), (9, [TrialStatus.INFEASIBLE])],
    ids=["empty", "one", "infeasible"],
)
def test_a_run_with_little_to_show_opens_cleanly(
    browser: Browser, tmp_path: Path, count: int, kinds: list[TrialStatus]
) -> None:
    path = tmp_path / "report.html"
    path.write_text(render(runs.results(count, kinds=kinds)), encoding="utf-8")
    browser.open(path, PHONE)
    assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth")
    assert len(browser.texts("#trial-rows tr.row")) == count
    assert browser.errors() == []


def test_ten_thousand_trials_open_with_a_short_table_and_every_figure(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(render(runs.results(10_000)), encoding="utf-8")
    assert path.stat().st_size < 20e6
    browser.open(path)
    assert len(browser.texts("#trial-rows tr.row")) == 50
    assert set(
        browser.run("return [...document.querySelectorAll('[data-drawn]')].map((one) => one.dataset.figure)")
    ) == (FIGURES)
    browser.click('[data-column="2"]')
    assert len(browser.texts("#trial-rows tr.row")) == 50
    assert browser.errors() == []
