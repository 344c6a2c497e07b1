"""Pages in a real browser: the report of a run, and the review of picks."""

import csv
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricated_runs import fabricate_data, fabricate_run

from cryo_monai.picking import read_review, write_review
from cryo_monai.reports import feature_maps
from cryo_monai.reports.run_reports import write_report

pytestmark = pytest.mark.browser

NASTY = "</script><b>\"x\" & 'y'"
WIDTHS = [1280, 390]
ROWS = [
    {"id": "a,1", "tomogram": "ts 1", "z": 3, "y": 4.5, "x": 5, "score": 0.25, "class_name": "ribo"},
    {"id": "007", "tomogram": "ts 1", "z": 3, "y": 4.5, "x": 9, "score": 0.5, "class_name": "ribo"},
    {"id": "<b>&", "tomogram": 'ts "2"', "z": 1, "y": 2, "x": 3, "score": 0.75, "class_name": 'a "b"'},
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    program = next(filter(None, found), None)
    if program is None:
        pytest.fail("no browser: install one, as by `apt-get install chromium`, or leave out -m browser")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.fail("no playwright: pip install playwright axe-playwright-python")
    with sync_playwright() as playwright:
        # In containers there is no user that a sandbox could be made for.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens pages, and afterwards fails if one of them complained or asked for anything outside its own file."""
    complaints: list[str] = []
    pages = []

    def open_file(file: Path, width: int = 1280, **options: Any) -> Any:
        page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        pages.append(page)
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        # Nor does it listen to the network while it loads.
        page.on("request", lambda request: complaints.append(request.url) if _is_outside(request.url, file) else None)
        page.goto(file.as_uri())
        return page

    yield open_file
    for page in pages:
        page.close()
    assert complaints == []


def _is_outside(url: str, file: Path) -> bool:
    return url.split("#")[0] != file.as_uri() and not url.startswith(("data:", "blob:"))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    data = fabricate_data(
        folder / "data", ["ribosome", NASTY, "a_class_name_that_is_long_and_has_no_place_to_break_at"]
    )
    changed = [{"after_epoch": 3, "changed": {"lr": [0.001, 0.01]}}]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_maps, "available_methods", lambda: ["pca", "tsne"])
        return write_report(fabricate_run(folder / "run", data, skill=1.0, resumed=changed))


def numbers_of(page: Any) -> list[int]:
    """Points that the map says it shows, all there are, and mistakes among those shown."""
    return [int(word) for word in page.inner_text("#map-count").split() if word.isdigit()]


def test_pointing_at_a_point_shows_its_volume(report: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(report)
    canvas = page.locator("#map-canvas")
    canvas.scroll_into_view_if_needed()
    data = json.loads(page.text_content("#map-data"))
    assert not page.is_visible("#map-volume")
    box = canvas.bounding_box()
    # One scale for both axes, the origin in the middle; the page knows where it drew the first point.
    place = page.evaluate(
        """() => { const chart = Chart.getChart("map-canvas"); const point = chart.getDatasetMeta(0).data[0];
        return [point.x, point.y, chart.data.datasets[0].data[0].row]; }"""
    )
    page.mouse.move(box["x"] + place[0], box["y"] + place[1])
    page.wait_for_selector("#map-volume:visible")
    row = place[2]
    names = [group["name"] for group in data["classes"]]
    assert page.inner_text("#map-true") == names[data["labels"][row]]
    verdict = "right" if data["labels"][row] == data["predicted"][row] else "wrong"
    assert page.inner_text("#map-predicted") == f"{names[data['predicted'][row]]} ({verdict})"
    assert page.inner_text("#map-probability") == f"{data['probabilities'][row]:.3f}"
    assert page.inner_text("#map-path") == data["paths"][row]
    page.wait_for_function(f"document.getElementById('map-slices').dataset.row === '{row}'")
    # The dark block in the middle of the fabricated volume, on its own thumbnail.
    shades = page.evaluate(
        """() => { const canvas = document.getElementById("map-slices");
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        const at = (x, y) => data[4 * (Math.floor(y * canvas.height) * canvas.width + Math.floor(x * canvas.width))];
        return [at(1 / 6, 0.5), at(0.5, 0.5), at(1 / 12, 0.5)]; }"""
    )
    assert max(shades[:2]) < 90 < shades[2]


def test_the_map_is_used_by_keys_alone(report: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(report)
    page.focus("#map-every")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Shift+Tab")
    page.focus("#map-canvas")
    page.keyboard.press("Home")
    seen = {page.inner_text("#map-path")}
    for _ in range(5):
        page.keyboard.press("ArrowRight")
        seen.add(page.inner_text("#map-path"))
    assert len(seen) > 3
    page.keyboard.press("Escape")
    assert not page.is_visible("#map-volume")


def test_touching_a_point_shows_its_volume(report: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(report, 390, has_touch=True)
    canvas = page.locator("#map-canvas")
    canvas.scroll_into_view_if_needed()
    place = page.evaluate(
        "(() => { const p = Chart.getChart('map-canvas').getDatasetMeta(0).data[1]; return [p.x, p.y]; })()"
    )
    box = canvas.bounding_box()
    page.touchscreen.tap(box["x"] + place[0], box["y"] + place[1])
    page.wait_for_selector("#map-volume:visible")


def test_filters_change_what_is_shown(report: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(report)
    everything, total, wrong = numbers_of(page)
    assert everything == total == 18
    assert 0 < wrong < total
    drawn = "Chart.getChart('map-canvas').data.datasets.reduce((sum, dataset) => sum + dataset.data.length, 0)"
    page.locator("#map-classes input").nth(1).uncheck()
    assert numbers_of(page)[0] == page.evaluate(drawn) == 12
    page.locator("#map-classes input").nth(1).check()
    page.select_option("#map-verdict", "wrong")
    assert numbers_of(page)[0] == page.evaluate(drawn) == wrong
    page.select_option("#map-verdict", "right")
    assert numbers_of(page)[0] == page.evaluate(drawn) == total - wrong
    page.click("#map-none")
    assert numbers_of(page)[0] == page.evaluate(drawn) == 0
    page.click("#map-every")
    page.select_option("#map-verdict", "all")
    before = page.inner_text("#map-description")
    page.select_option("#map-method", label="t-SNE")
    assert page.inner_text("#map-description") != before
    assert numbers_of(page)[0] == total
    assert page.locator("#map-classes label").nth(1).inner_text().strip() == NASTY


def test_tables_are_sorted_by_number_and_by_keys(report: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(report)
    column = "[...document.querySelectorAll('#class-table tbody tr')].map(row => Number(row.cells[3].dataset.value))"
    head = page.locator("#class-table thead th").nth(3)
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    values = page.evaluate(column)
    assert values == sorted(values, reverse=True)
    assert len(set(values)) > 1
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert page.evaluate(column) == sorted(values)
    page.locator("#class-table thead button").first.click()
    names = page.evaluate(
        "[...document.querySelectorAll('#class-table tbody th')].map(cell => cell.textContent.trim())"
    )
    assert len(set(names)) == 3
    assert page.locator("#class-table [aria-sort]").count() == 1


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_too_wide_or_too_small(width: int, report: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(report, width)
    page.focus("#map-canvas")
    page.keyboard.press("Home")
    page.evaluate("document.querySelectorAll('details').forEach((element) => { element.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    small = page.evaluate(
        """() => [...document.querySelectorAll("body *")].filter((element) =>
          [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()) &&
          element.checkVisibility() && parseFloat(getComputedStyle(element).fontSize) < 11)
          .map((element) => element.outerHTML.slice(0, 80))"""
    )
    assert small == []
    # Text within figures shrinks with them: what counts is by how much they are shown smaller than drawn.
    shown = page.evaluate(
        """() => [...document.querySelectorAll("figure img")]
          .filter((image) => image.checkVisibility()).map((image) => {
          const text = atob(image.src.split(",")[1]);
          const drawing = new DOMParser().parseFromString(text, "image/svg+xml").documentElement;
          const size = (element) => parseFloat(/([\\d.]+)px/.exec(element.getAttribute("style"))[1]);
          const wide = Number(drawing.getAttribute("viewBox").split(" ")[2]);
          return Math.min(...[...drawing.querySelectorAll("text")].map(size)) * image.clientWidth / wide;
        })"""
    )
    assert len(shown) == 6
    assert min(shown) >= 10.99


def test_paper_has_everything_and_no_controls(report: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(report)
    pdf = page.pdf(format="A4", print_background=True)
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") > 1
    page.emulate_media(media="print")
    assert not page.is_visible("#map")
    assert not page.is_visible("nav")
    assert page.is_visible("#features figure img")
    # Chromium fires this before it prints.
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.is_visible("#configuration-text")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.emulate_media(media="screen")
    assert not page.is_visible("#configuration-text")


def test_the_command_is_copied_or_else_selected(report: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(report)
    command = page.text_content("#command-text")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("button.copy")
    page.wait_for_selector("button.copy:has-text('Copied')")
    assert page.evaluate("navigator.clipboard.readText()") == command
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page.click("button.copy")
    page.wait_for_selector("button.copy:has-text('Ctrl+C')")
    assert page.evaluate("getSelection().toString()") == command


@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_nothing_serious_in_a_report(width: int, report: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(report, width)
    page.focus("#map-canvas")
    page.keyboard.press("Home")
    assert serious(page) == []


def serious(page: Any) -> list[str]:
    """Serious and critical violations of accessibility."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response
    assert len(found["passes"]) > 10
    return [
        f"{rule['id']}: {rule['nodes'][0]['html'][:200]}"
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
    ]


@pytest.fixture
def review(tmp_path: Path) -> Path:
    def box(index: int) -> np.ndarray:
        return np.random.default_rng(index).normal(size=(6, 7, 8)).astype(np.float32)

    return write_review(tmp_path / "review", box, ROWS, title="Picks <1>")


def saved(page: Any) -> str:
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "review.csv"
    return Path(download.value.path()).read_text()


def test_a_review_is_saved_as_it_was_ticked(review: Path, open_page: Callable[..., Any], tmp_path: Path) -> None:
    page = open_page(review)
    assert page.inner_text("#count") == "3 of 3 kept"
    assert saved(page) == (review.parent / "review.csv").read_text()
    page.locator(".pick input").nth(1).uncheck()
    assert page.inner_text("#count") == "2 of 3 kept, not saved"
    text = saved(page)
    assert page.inner_text("#count") == "2 of 3 kept"
    (tmp_path / "saved.csv").write_text(text)
    assert read_review(tmp_path / "saved.csv") == {"<b>&": True, "007": False, "a,1": True}
    assert [row["class_name"] for row in csv.DictReader(io.StringIO(text))] == ['a "b"', "ribo", "ribo"]
    assert page.locator("b").count() == 0


def test_a_review_is_filtered_by_class_and_ticked_in_bulk(review: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(review)
    page.select_option("#shown", "ribo")
    assert page.locator(".pick:visible").count() == 2
    page.click("#untick")
    page.select_option("#shown", 'a "b"')
    assert page.locator(".pick:visible").count() == 1
    assert page.locator(".pick:visible input").is_checked()
    page.select_option("#shown", "")
    assert [box.is_checked() for box in page.locator(".pick input").all()] == [True, False, False]
    page.click("#tick-all")
    assert page.inner_text("#count").startswith("3 of 3 kept")
    page.locator(".pick input").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    assert [box.is_checked() for box in page.locator(".pick input").all()] == [True, False, True]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_review_is_readable(width: int, scheme: str, review: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(review, width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator(".pick input").first.uncheck()
    assert serious(page) == []
