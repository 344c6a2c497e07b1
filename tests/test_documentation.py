"""The site builds without a warning and stands alone; links in all pages lead somewhere; CITATION.cff is valid."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch
import yaml
from conftest import ROOT
from markdown_it import MarkdownIt

import cryo_monai
from cryo_monai.__main__ import VERBS, main
from cryo_monai.backbones import BACKBONES, Backbone, build_backbone
from cryo_monai.command_line import parameters_of

DOCS = ROOT / "docs"
PAGES = sorted(
    [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    + [page for page in DOCS.rglob("*.md") if "_build" not in page.parts]
    + list((ROOT / "bundles").glob("*/docs/*.md"))
)
# Tags and their attributes by which a page loads something when it is opened.
LOADS = {
    "script": "src",
    "link": "href",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "object": "data",
}
PACKAGE = Path(cryo_monai.__file__).parent


@cache
def links_and_headings(page: Path) -> tuple[list[str], list[str]]:
    """What a Markdown page links to or shows, and the anchors that GitHub gives to its headings."""
    links, anchors = [], []
    tokens = MarkdownIt("commonmark").enable("table").parse(page.read_text())
    for before, token in pairwise(tokens):
        for child in token.children or []:
            links += [str(child.attrs[key]) for key in ("href", "src") if key in child.attrs]
        if before.type == "heading_open":
            text = "".join(child.content for child in token.children or [])
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            seen = sum(anchor == slug or re.fullmatch(rf"{slug}-\d+", anchor) is not None for anchor in anchors)
            anchors.append(f"{slug}-{seen}" if seen else slug)
    return links, anchors


def target_of(page: Path, link: str) -> Path:
    """The file that a relative link of a Markdown page leads to."""
    path = unquote(urlsplit(link).path)
    return (page.parent / path).resolve() if path else page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in links_and_headings(page)[0]:
        if urlsplit(link).scheme:
            assert urlsplit(link).scheme in ("https", "mailto"), link
            assert urlsplit(link).netloc or link.startswith("mailto:"), link
            continue
        target = target_of(page, link)
        assert target.exists(), f"{link}: leads nowhere"
        assert target.is_relative_to(ROOT), f"{link}: leaves the repository"
        if fragment := urlsplit(link).fragment:
            assert target.suffix == ".md", f"{link}: no headings there"
            assert fragment in links_and_headings(target)[1], f"{link}: no such heading"


def test_every_page_is_reached_from_the_index_by_links_in_the_text() -> None:
    reached, waiting = set(), [DOCS / "index.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.is_relative_to(DOCS):
            continue
        reached.add(page)
        waiting += [target_of(page, link) for link in links_and_headings(page)[0] if not urlsplit(link).scheme]
    assert {page for page in PAGES if page.is_relative_to(DOCS)} == reached


class Page(HTMLParser):
    """Anchors, links, and what is loaded, of a page of the site."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.anchors.add(given.get("id") or "")
        if tag == "a" and given.get("href"):
            self.links.append(str(given["href"]))
        if tag in LOADS and given.get(LOADS[tag]):
            self.loads.append(str(given[LOADS[tag]]))
        if given.get("srcset"):
            self.loads += [part.split()[0] for part in str(given["srcset"]).split(",")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as the documentation says; a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", str(folder / "doctrees")]
    # Without the way out that a proxy may be.
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run(
        [*command, str(DOCS), str(folder / "html")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {file: Page(file) for file in site.rglob("*.html")}


def is_outside(address: str) -> bool:
    return bool(urlsplit(address).netloc) or urlsplit(address).scheme not in ("", "data")


def test_no_page_loads_anything_from_the_net(site: Path, pages: dict[Path, Page]) -> None:
    assert site / "index.html" in pages
    for file, page in pages.items():
        assert page.loads, file
        assert [address for address in page.loads if is_outside(address)] == [], file
    sheets = list(site.rglob("*.css"))
    assert sheets
    for sheet in sheets:
        loaded = re.findall(r"""(?:url\(|@import\s+)\s*["']?([^"')\s]+)""", sheet.read_text())
        assert [address for address in loaded if is_outside(address)] == [], sheet


def test_every_link_of_the_site_leads_to_a_file_and_an_anchor(site: Path, pages: dict[Path, Page]) -> None:
    for file, page in pages.items():
        for link in page.links:
            if is_outside(link):
                continue
            path, fragment = unquote(urlsplit(link).path), urlsplit(link).fragment
            target = (file.parent / path).resolve() if path else file
            assert target.is_file(), f"{file.relative_to(site)}: {link}"
            if fragment and target in pages:
                assert unquote(fragment) in pages[target].anchors, f"{file.relative_to(site)}: {link}"


def spelled(verbs: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, verb in verbs.items():
        yield from spelled(verb, f"{prefix}{name} ") if isinstance(verb, Mapping) else [(prefix + name, verb)]


def test_every_verb_has_an_entry_with_every_flag(site: Path, pages: dict[Path, Page]) -> None:
    page = site / "reference" / "verbs.html"
    sections = dict(part.split('"', 1) for part in page.read_text().split('<section id="')[1:])
    for name, verb in spelled(VERBS):
        text = re.sub(r"<[^>]+>", " ", sections[name.replace(" ", "-").replace("_", "-")])
        words = set(re.findall(r"\w+", text))
        assert f"cryo-monai {name}" in text
        for flag in parameters_of(verb):
            assert words & {flag, flag.upper()}, f"{name}: {flag}"


def test_every_module_and_public_name_has_an_entry(site: Path, pages: dict[Path, Page]) -> None:
    anchors = set().union(*(page.anchors for file, page in pages.items() if file.parent == site / "reference"))
    modules = [file.relative_to(PACKAGE).with_suffix("") for file in PACKAGE.rglob("*.py") if file.stem != "__init__"]
    for module in modules:
        if not module.name.endswith("_verbs") and str(module) not in ("__main__", "command_line"):
            where = "not a module of docs/architecture.md whose group a page of docs/reference has"
            assert f"module-cryo_monai.{'.'.join(module.parts)}" in anchors, f"{module}: {where}"
    linked = {urlsplit(link).fragment for link in pages[site / "reference" / "names.html"].links}
    for name in cryo_monai.__all__:
        if callable(getattr(cryo_monai, name)):
            assert any(link.endswith(f".{name}") for link in linked), name


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def test_the_backbone_that_is_added_as_documented_takes_the_clips_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    builder, line = blocks(DOCS / "howto" / "add_backbone.md", "python")
    (overlay,) = (json.loads(block) for block in blocks(DOCS / "howto" / "add_backbone.md", "json"))
    namespace: dict[str, Any] = {"Backbone": Backbone, "__name__": "densenets"}
    exec(builder, namespace)
    ((name, record),) = eval(f"{{{line}}}", namespace).items()
    assert overlay["backbone"] == name
    monkeypatch.setitem(BACKBONES, name, record)
    for clip in ((28, 28, 28), (8, 32, 48)):
        module, features = build_backbone(name, clip, **overlay["backbone_options"])
        with torch.no_grad():
            assert module.eval()(torch.rand(2, 1, *clip)).shape == (2, features)
    for key, _ in module.named_parameters():
        assert sum(key.startswith(prefixes) for prefixes in record.stages) == 1, key


def test_the_data_set_that_is_added_as_documented_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = DOCS / "howto" / "add_dataset.md"
    (tmp_path / "shapes.py").write_text(blocks(page, "python")[0])
    (tmp_path / "shapes.json").write_text(blocks(page, "json")[0])
    for name in ("bundles", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (command,) = blocks(page, "bash")
    assert main(shlex.split(command.replace("\\\n", " "))[1:]) == 0
    history = json.loads((tmp_path / "runs" / "shapes" / "metrics.json").read_text())
    assert "val_accuracy" in json.dumps(history)
    assert json.loads((tmp_path / "runs" / "shapes" / "run.json").read_text())["overlays"][-1].endswith("shapes.json")


@pytest.mark.browser
def test_a_browser_asks_for_nothing_outside_the_site(site: Path) -> None:
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert program, "no browser: install one, as by `apt-get install chromium`, or leave out -m browser"
    asked: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        for name in ("index.html", "tutorial.html", "reference/verbs.html", "reference/network.html"):
            page.goto((site / name).as_uri())
            page.wait_for_load_state("networkidle")
        browser.close()
    assert len(asked) > 4
    assert [address for address in asked if not address.startswith((site.as_uri(), "data:"))] == []


# Required by version 1.2.0 of the Citation File Format (doi 10.5281/zenodo.5171937), and the further keys used here.
REQUIRED = {"authors", "cff-version", "message", "title"}
FURTHER = {"abstract", "keywords", "license", "preferred-citation", "type", "version", "repository-code", "url"}


def test_the_citation_file_is_valid_and_says_what_the_package_says() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert REQUIRED <= citation.keys() <= REQUIRED | FURTHER
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["version"] == cryo_monai.__version__
    project = (ROOT / "pyproject.toml").read_text()
    assert f'license = "{citation["license"]}"' in project
    assert f'description = "{citation["abstract"].rstrip(".")}"' in project
    assert [author["name"] for author in citation["authors"]] == re.findall(r'authors = \[\{ name = "(.+?)"', project)
    paper = citation["preferred-citation"]
    assert {"authors", "title", "type"} <= paper.keys()
    assert [author["family-names"] for author in paper["authors"]] == ["Jain", "Li", "Xu"]
    assert paper["doi"] == "10.1093/bioinformatics/btae368"
    assert f"https://doi.org/{paper['doi']}" in (ROOT / "README.md").read_text()
