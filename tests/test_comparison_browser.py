"""The comparison as a reader meets it: in a browser, on a screen and on a phone."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_comparisons import scores, write_run

from cryo_monai.reports import feature_stages
from cryo_monai.reports.comparisons import write_comparison

pytestmark = pytest.mark.browser
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of three runs, one with a long name."""
    folder = tmp_path_factory.mktemp("comparison")
    names = ["video", "random", "a_rather_long_name_of_a_run_with_underscores_only"]
    runs = [write_run(folder / name, scores(skill, seed=n), lr=n) for n, (name, skill) in
            enumerate(zip(names, (1.5, 0.3, 0.2), strict=True))]  # fmt: skip
    start = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_stages, "starting_features", lambda run_dir: start)
        return write_comparison(runs, folder / "out", projection="pca")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium of the system."""
    if CHROMIUM is None:
        pytest.fail("no browser: install one, as by `apt-get install chromium`, or leave out -m browser")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tool:
        chromium = tool.chromium.launch(executable_path=CHROMIUM)
        yield chromium
        chromium.close()


@pytest.fixture(params=[1280, 390])
def page(browser: Any, page_file: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page, opened; it must stay without complaints and requests."""
    opened = browser.new_page(viewport={"width": request.param, "height": 844})
    complaints: list[str] = []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda request: complaints.append(request.url) if request.url[:4] == "http" else None)
    opened.goto(page_file.as_uri())
    yield opened
    assert complaints == []
    opened.close()


def test_nothing_is_wider_than_the_screen(page: Any) -> None:
    wide, screen = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide <= screen
    pictures = page.evaluate("[...document.images].map((image) => [image.complete, image.naturalWidth])")
    assert len(pictures) == 6
    assert all(complete and width > 100 for complete, width in pictures)


def test_tables_sort_by_what_they_show(page: Any) -> None:
    first = "#metric-table tbody tr:first-child th"
    head = page.locator("#metric-table thead th", has_text="AUC")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert page.locator(first).inner_text() == "video"
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert page.locator(first).inner_text() != "video"
    column = page.locator("#accuracy-table thead th", has_text="Difference")
    column.locator("button").click()
    shown = page.locator("#accuracy-table tbody td:nth-child(4)").evaluate_all(
        "all => all.map((c) => +c.dataset.value)"
    )
    assert shown == sorted(shown, reverse=True)


def test_nothing_stands_in_the_way_of_assistive_technology(page: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(page).response["violations"]
    serious = [entry for entry in found if entry["impact"] in ("serious", "critical")]
    assert not serious, [(entry["id"], [node["html"][:200] for node in entry["nodes"]]) for entry in serious]


def test_it_prints(page: Any, tmp_path: Path) -> None:
    page.pdf(path=str(tmp_path / "page.pdf"))
    assert (tmp_path / "page.pdf").stat().st_size > 50_000
