"""The page of a sweep stands alone, whatever of the sweep is done."""

import base64
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fabricated_runs import GRID, fabricate_sweep, fabricate_trial

from cryo_monai.reports import sweep_contents
from cryo_monai.reports.sweep_contents import validation_curve, verdict_of
from cryo_monai.reports.sweep_pages import write_sweep_page
from cryo_monai.sweep_results.results import collect_results
from cryo_monai.sweep_results.summaries import summarise_sweep
from cryo_monai.sweeps.outcomes import Outcome

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
AXES = {"label_fraction": [0.25, 1.0], "initialisation": ["random", "video"], "seed": [0, 1, 2]}
SWEEP: dict[str, Any] = {
    "title": "A sweep <of> two & more", "_desc_": "What it is.", "axes": AXES, "compare": "initialisation",
    "baseline": "random",
    "published": [
        {"label_fraction": 0.25, "initialisation": "video", "accuracy": 0.9, "source": "Somewhere 2024"},
        {"label_fraction": 0.25, "method": "Another", "accuracy": 0.4, "source": "Elsewhere 2024"},
        {"method": "Of unknown labels", "accuracy": 0.5, "source": "Elsewhere 2024"},
    ],
}  # fmt: skip


class Reader(HTMLParser):
    """What a page has: texts, elements that are open, and addresses of pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.links: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "img":
            self.images.append(given)
        self.links += [given[name] for name in ("src", "href") if name in given]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text += data


def read(page: Path) -> Reader:
    reader = Reader()
    reader.feed(page.read_text())
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """Twelve trials, of which one failed."""
    found = fabricate_sweep(tmp_path_factory.mktemp("sweep"), AXES, epochs=4)
    found[0] = replace(found[0], state="failed", reason="no <room> left")
    return found


@pytest.fixture(scope="module")
def page_file(outcomes: list[Outcome], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their page."""
    return write_sweep_page(outcomes, SWEEP, tmp_path_factory.mktemp("page"))


def test_the_page_says_what_is_done_what_failed_and_what_was_found(page_file: Path) -> None:
    text = " ".join(read(page_file).text.split())
    for words in (
        "A sweep <of> two & more", "What it is.", "of 12 trials", "25 % labelled, random, seed 0: no <room> left",
        "Of unknown labels (quoted) [b]",
        "Another (quoted) [b]", "[b] Elsewhere 2024", "Hedges' g", "Training effort",
    ):  # fmt: skip
        assert words in text, words
    assert page_file.name == "sweep.html"


def test_nothing_is_fetched_and_figures_are_svg_with_words(page_file: Path) -> None:
    reader = read(page_file)
    assert all(str(link).startswith(("#", "data:")) for link in reader.links)
    assert len(reader.images) == 5  # one of labels, two of differences, two of validation
    for image in reader.images:
        kind, _, content = str(image["src"]).partition(",")
        assert kind == "data:image/svg+xml;base64"
        assert base64.b64decode(content).startswith(b"<svg")
        assert len(str(image["alt"])) > 40
    drawn = base64.b64decode(str(reader.images[0]["src"]).partition(",")[2]).decode()
    assert all(words in drawn for words in ("500", "2000", "video", "Another, quoted", "open: published"))
    assert "unknown" not in drawn


def test_the_same_folders_give_the_same_page(outcomes: list[Outcome], page_file: Path, tmp_path: Path) -> None:
    assert write_sweep_page(outcomes, SWEEP, tmp_path).read_bytes() == page_file.read_bytes()


@pytest.mark.parametrize("sweep", [SWEEP, {}])
def test_without_a_trial_that_is_done_there_is_a_page(tmp_path: Path, sweep: dict[str, Any]) -> None:
    cells = [{"label_fraction": fraction, "initialisation": name, "seed": 0}
             for fraction in (0.25, 1.0) for name in ("random", "video")]  # fmt: skip
    waiting = [Outcome(cell, tmp_path / str(number), "waiting") for number, cell in enumerate(cells)]
    reader = read(write_sweep_page(waiting, sweep, tmp_path))
    assert "of 4 trials" in reader.text
    assert "no trial is done" in reader.text
    assert reader.images == []
    assert "of 0 trials" in read(write_sweep_page([], sweep, tmp_path)).text


def test_an_odd_sweep_has_its_curves(tmp_path: Path) -> None:
    # One seed, one epoch, no comparison; and a name that is a formula to others.
    outcomes = [
        fabricate_trial(tmp_path / str(rate), {"lr": rate, "kind": "$a_b$"}, val_accuracies=(0.5,)) for rate in (0.1, 1)
    ]
    reader = read(write_sweep_page(outcomes, {}, tmp_path))
    assert [image["alt"] for image in reader.images] == [
        "Validation accuracy: lr 0.1. ours: 50.00 % after 1 epochs.",
        "Validation accuracy: lr 1. ours: 50.00 % after 1 epochs.",
    ]


def test_what_is_not_drawn_is_told(outcomes: list[Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_contents, "MAX_FIGURES", 1)
    assert "1 more" in read(write_sweep_page(outcomes, SWEEP, tmp_path)).text


def test_the_verdict_counts_rows_that_differ_by_more_than_luck(tmp_path: Path) -> None:
    # Student's p is 0.0008 for the first and the last, and 0.039 for those between, which four rows do not allow.
    values = {"clear": (0.2, 0.21, 0.22), "more": (0.02, 0.03, 0.015), "less": (-0.02, -0.03, -0.015),
              "worse": (-0.2, -0.21, -0.22)}  # fmt: skip
    found = [
        fabricate_trial(tmp_path / f"{name}{start}{seed}", {"dataset": name, "start": start, "seed": seed},
                        accuracy=0.5 + (gain if start == "b" else 0))
        for name, gains in values.items() for seed, gain in enumerate(gains) for start in "ab"
    ]  # fmt: skip
    sweep = {"compare": "start", "baseline": "a"}
    assert verdict_of(summarise_sweep(collect_results(found), sweep)) == (
        "B has a higher accuracy than a in 1 of 4 rows that could be tested, a lower one in 1 (paired t-tests over "
        "seeds, p below 0.05 after Holm)."
    )
    assert "Nothing can be tested yet" in verdict_of(summarise_sweep(collect_results(found[:4]), sweep))
    assert verdict_of(summarise_sweep(collect_results(found), {})) == ""


def test_validation_curves_are_of_epochs_that_all_seeds_have(tmp_path: Path) -> None:
    trials = [
        fabricate_trial(tmp_path / str(seed), {"seed": seed}, val_accuracies=curve, seconds=60 * (1 + seed))
        for seed, curve in enumerate([(0.1, 0.2, 0.3), (0.3, 0.4), (0.5, 0.6, 0.7)])
    ]
    curve = validation_curve(collect_results(trials))
    assert curve is not None
    assert curve.epochs == (1, 2)
    assert [estimate.mean for estimate in curve.accuracies] == pytest.approx([0.3, 0.4])
    assert curve.minutes == pytest.approx((2, 4))
    assert validation_curve([]) is None


def test_the_grid_of_the_paper_has_a_figure_of_labels_for_each_data_set(tmp_path: Path) -> None:
    summary = summarise_sweep(collect_results(fabricate_sweep(tmp_path, GRID, epochs=2)), {**SWEEP, "axes": GRID})
    titles = [figure["title"] for figure in sweep_contents.efficiency_figures(summary)]
    assert titles == ["Accuracy over labels: simulated", "Accuracy over labels: real"]


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_screens_and_is_accessible(page_file: Path, width: int) -> None:
    if CHROMIUM is None:
        pytest.fail("no browser: install one, as by `apt-get install chromium`, or leave out -m browser")
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tool:
        chromium = tool.chromium.launch(executable_path=CHROMIUM)
        page = chromium.new_page(viewport={"width": width, "height": 844})
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(page_file.as_uri())
        wide = page.evaluate("document.documentElement.scrollWidth")
        found = Axe().run(page).response["violations"]
        chromium.close()
    assert wide == width
    assert complaints == []
    assert found == [], [entry["id"] for entry in found]
