"""The page is one file that loads nothing, runs nothing from a trial, and has something to say about any run."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from autopeft.dashboards.front_figure import front_panel
from autopeft.dashboards.page import embedded, render
from autopeft.dashboards.style import MANY_POINTS

from autopeft.domain.results import RunResults
from autopeft.domain.trial import TrialStatus
from autopeft.plugins import PAGES, load
from tests.unit import dashboard_runs as runs

LOADING = {"src", "href", "srcset", "action", "data", "poster", "formaction", "background", "xlink:href"}


class Reader(HTMLParser):
    """Collects every element with its attributes, and the text of scripts and of everything else."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = self.style = ""
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else ""
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self._inside == "style":
            self.style += data
        else:
            self.text += data


@pytest.fixture(scope="module")
def nasty() -> Reader:
    results = runs.results()
    record = results.record.model_copy(update={"name": f"run {runs.SCRIPT}"})
    return Reader(render(replace(results, record=record), [f"Careful: {runs.SCRIPT}"]))


def test_page_is_found_by_its_entry_point() -> None:
    assert load(PAGES, "report", "test")(runs.results(0)).startswith("<!doctype html>")


def test_page_loads_nothing(nasty: Reader) -> None:
    for tag, attributes in nasty.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form"), tag
        for name in LOADING & set(attributes):
            assert (attributes[name] or "").startswith("#"), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
    assert "--accent" in nasty.style
    assert not re.search(r"url\(|@import", nasty.style)


def test_policy_names_exactly_the_scripts_that_run(nasty: Reader) -> None:
    policy = next(
        attributes["content"] or ""
        for tag, attributes in nasty.elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    running = [text for attributes, text in nasty.scripts if attributes.get("type") != "application/json"]
    hashes = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in running}
    assert len(running) == 2
    assert set(re.findall(r"'sha256-([^']+)'", policy)) == hashes
    assert "default-src 'none'" in policy
    assert not re.search(r"https?:", policy)
    assert "script-src 'unsafe-inline'" not in policy


def test_text_from_trials_stays_text(nasty: Reader) -> None:
    assert [attributes for tag, attributes in nasty.elements if tag == "script"] == [
        {"type": "application/json", "id": "report-data"},
        {},
        {},
    ]
    assert f"run {runs.SCRIPT}" in nasty.text
    assert f"Careful: {runs.SCRIPT}" in nasty.text
    data = nasty.scripts[0][1]
    assert not set("<>&") & set(data)
    failures = [row["e"] for row in json.loads(data)["table"]["rows"]]
    assert any(runs.SCRIPT in failure for failure in failures)


def test_hover_text_has_no_markup_of_a_trial() -> None:
    (view,) = front_panel(runs.results()).views
    hovers = [text for trace in view.figure.data for text in (trace.hovertext if trace.hovertext is not None else [])]
    assert any("&lt;script&gt;" in text for text in hovers)
    for text in hovers:
        assert set(re.findall(r"<[^>]*>", text)) <= {"<b>", "</b>", "<br>"}


def test_embedded_json_round_trips() -> None:
    value = {"a": ["</script><!--", "\u2028 & é", 1.5, None]}
    assert json.loads(embedded(value)) == value
    with pytest.raises(ValueError, match="JSON"):
        embedded(float("nan"))


@pytest.mark.parametrize(
    ("results", "said"),
    [
        (runs.results(0), "No trial has run yet."),
        (runs.results(1), "The front has 1 point."),
        (runs.results(6, kinds=[TrialStatus.INFEASIBLE]), "Every trial was infeasible"),
        (runs.results(4, kinds=[TrialStatus.CRASHED]), "No trial completed"),
        (runs.results(4, kinds=[TrialStatus.PENDING]), "4 are waiting or running"),
        (runs.results(20, ("accuracy",)), "Best accuracy"),
        (runs.results(20, ("train_peak_bytes", "latency_s"), max_memory=None), "Best train peak"),
        (runs.results(30, ("accuracy", "trainable_parameters", "latency_s", "f1")), "Best accuracy"),
    ],
    ids=["empty", "one", "infeasible", "crashed", "pending", "one objective", "no quality", "four objectives"],
)
def test_page_of_any_run_says_what_there_is(results: RunResults, said: str) -> None:
    page = Reader(render(results))
    assert said in page.text
    assert len(json.loads(page.scripts[0][1])["table"]["rows"]) == len(results.trials)


def test_many_points_are_drawn_with_webgl_and_few_without() -> None:
    def kinds(results: RunResults) -> set[str]:
        return {trace.type for trace in front_panel(results).views[0].figure.data}

    many = runs.results(MANY_POINTS + 100, kinds=[TrialStatus.COMPLETE])
    assert "scattergl" in kinds(many)
    assert kinds(runs.results()) == {"scatter"}
