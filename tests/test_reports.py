"""The report page of a run, without a browser."""

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fabricated_runs import fabricate_data, fabricate_run

from cryo_monai.errors import InputError
from cryo_monai.reports import feature_maps, figures, page_figures
from cryo_monai.reports.contents import read_contents
from cryo_monai.reports.pages import data_uri, decimals, render, script_json
from cryo_monai.reports.run_reports import CONTENTS, write_report
from cryo_monai.reports.texts import command_of, configuration_text, range_text, verdict_of

NASTY = "</script><b>\"x\" & 'y' {{ 7 * 7 }} <!--"


@pytest.fixture(autouse=True)
def _pca_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other projections take seconds."""
    monkeypatch.setattr(feature_maps, "available_methods", lambda: ["pca"])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """For those who do not look at the figures."""
    monkeypatch.setattr(page_figures, "png_of", lambda figure: b"a picture")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    data = fabricate_data(folder / "data", ["ribosome", "70S", NASTY])
    return fabricate_run(folder / "run one", data, skill=1.0)


@pytest.fixture(scope="module")
def report(run_dir: Path) -> Path:
    """The page of `run_dir`; in its place an older report had lain."""
    stale = run_dir / "report" / "figures" / "embedding_umap.svg"
    stale.parent.mkdir(parents=True)
    stale.write_text("old")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_maps, "available_methods", lambda: ["pca"])
        return write_report(run_dir)


class Page(HTMLParser):
    """Elements of a page with their attributes, and the text that a reader sees."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self._within = ""
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._within = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within == "script":
            self.scripts.append(data)
        elif not self._within:
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_a_report_is_one_page_with_files_beside_it(run_dir: Path, report: Path) -> None:
    assert report == run_dir / "report" / "report.html"
    page = Page(report.read_text())
    assert [a["id"] for a in page.all("section")] == [name for name, _ in CONTENTS]
    assert [a["href"] for a in page.all("a")][1:] == [f"#{name}" for name, _ in CONTENTS]
    files = {file.name for file in (run_dir / "report" / "figures").iterdir()}
    expected = {name for name in page_figures.FIGURES if name not in ("embedding_tsne", "embedding_umap")}
    assert files == {f"{name}{ending}" for name in expected for ending in (".svg", ".png")}
    assert all(a["src"] and a["src"].startswith("data:image/") and a["alt"] for a in page.all("img"))
    assert not any(a.get("src") for a in page.all("script"))
    assert not page.all("link")
    assert "default-src 'none'" in report.read_text()
    assert len(set(ids := [a["id"] for _, a in page.elements if a.get("id")])) == len(ids)


def test_the_same_run_gives_the_same_bytes(run_dir: Path, report: Path, tmp_path: Path) -> None:
    write_report(run_dir, tmp_path)
    files = sorted(file.relative_to(tmp_path) for file in tmp_path.rglob("*.*"))
    # And an earlier report leaves no figure behind that this one does not have.
    assert files == sorted(file.relative_to(report.parent) for file in report.parent.rglob("*.*"))
    assert len(files) > 10
    for file in files:
        assert (tmp_path / file).read_bytes() == (report.parent / file).read_bytes(), file


def test_names_of_classes_are_text_and_nothing_else(report: Path) -> None:
    text = report.read_text()
    page = Page(text)
    assert not page.all("b")
    assert NASTY in page.text
    assert "{{ 7 * 7 }}" in page.text
    data = json.loads(next(script for script in page.scripts if '"classes"' in script))
    assert [group["name"] for group in data["classes"]] == ["ribosome", "70S", NASTY]
    # Of the scripts only those of the template.
    assert len(page.all("script")) == text.count("<script") == 4


def test_the_map_has_each_volume_with_its_own_numbers(run_dir: Path, report: Path) -> None:
    page = Page(report.read_text())
    data = json.loads(next(script for script in page.scripts if '"classes"' in script))
    with (run_dir / "test_predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    names = [group["name"] for group in data["classes"]]
    assert [f"{data['folder']}/{path}" for path in data["paths"]] == [row["path"] for row in rows]
    assert [names[n] for n in data["labels"]] == [row["true_class"] for row in rows]
    assert [names[n] for n in data["predicted"]] == [row["class_name"] for row in rows]
    best = [max(float(row[f"p_{name}"]) for name in names) for row in rows]
    assert np.allclose(data["probabilities"], best, atol=1e-4)
    points = np.array(data["projections"][0]["points"])
    assert points.shape == (len(rows), 2)
    assert np.abs(points).max() == 1
    assert len({(group["colour"], group["shape"]) for group in data["classes"]}) == 3


def test_every_headline_has_its_interval_and_its_chance(run_dir: Path, report: Path) -> None:
    page = Page(report.read_text())
    numbers = json.loads((run_dir / "evaluation.json").read_text())
    for name in ("accuracy", "auc", "balanced_accuracy", "macro_f1"):
        assert f"{numbers[name]:.3f} 95 %: {range_text(numbers['intervals'][name])}" in page.text
    assert "most frequent class 0.333" in page.text
    assert "one seed" in page.text
    assert "Temperature 1.500" in page.text


def test_the_numbers_are_those_of_the_evaluation(run_dir: Path, report: Path) -> None:
    numbers = json.loads((report.parent / "metrics.json").read_text())
    evaluation = json.loads((run_dir / "evaluation.json").read_text())
    assert {name: numbers[name] for name in evaluation} == evaluation
    assert set(numbers["average_precision"]) == {"ribosome", "70S", NASTY}
    assert numbers["separability"]["num_volumes"] == evaluation["num_volumes"]
    assert numbers["audit"]["counts"]["test"]["70S"] == 6
    assert numbers["warnings"] == []


def test_mistakes_are_shown_the_surest_first(run_dir: Path, report: Path) -> None:
    page = Page(report.read_text())
    run = read_contents(run_dir)
    assert run.scores is not None
    alts = [str(a["alt"]) for a in page.all("img") if "taken for" in str(a["alt"]) and "Slices" in str(a["alt"])]
    chances = [float(alt.rsplit(" ", 1)[1].rstrip(".")) for alt in alts]
    assert len(alts) == min(12, run.scores.wrong.sum()) > 0
    assert chances == sorted(chances, reverse=True)


@pytest.mark.usefixtures("quick")
def test_only_volumes_that_are_shown_are_read(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_maps, "MAX_POINTS", 9)
    monkeypatch.setattr(feature_maps.shown_rows, "__defaults__", (9,))
    run = read_contents(run_dir)
    read: list[int] = []

    class Watched:
        def __len__(self) -> int:
            return len(run.volumes)

        def __getitem__(self, row: int) -> object:
            read.append(row)
            return run.volumes[row]

    watched = type(run)(**{**run.__dict__, "volumes": Watched()})
    shown = feature_maps.make_feature_map(watched)
    assert len(shown.rows) == 9
    assert set(read) <= {0, *shown.rows}
    page = Page(write_report(run_dir, run_dir.parent / "few").read_text())
    assert "9 of 18 shown" in page.text


@pytest.mark.usefixtures("quick")
def test_warnings_stand_above_everything_and_keys_are_told_by_fate(tmp_path: Path) -> None:
    data = fabricate_data(tmp_path / "data", ["a", "b", "c", "d"])
    changed = [{"after_epoch": 3, "changed": {"lr": [0.001, 0.01]}}]
    keys = {"loaded": 98, "resized": [], "missing": [f"layer4.{n}" for n in range(6)], "head": ["fc.weight"]}
    weights = {"weights": "/w/r3d.pt", "sha256": "ab", "record": None, "keys": keys}
    # The same voxels to train and to test on.
    shutil.copy(data / "volumes" / "training_0_0000.mrc", data / "volumes" / "test_0_0000.mrc")
    run = fabricate_run(tmp_path / "run", data, skill=0.0, resumed=changed, initialisation=weights)
    text = write_report(run).read_text()
    assert text.index('class="banner"') < text.index('id="summary"')
    page = Page(text)
    assert "2 warnings: read before the numbers are used" in page.text
    assert "resumed after epoch 3 with a changed configuration: lr 0.001 -> 0.01" in page.text
    assert "the same voxels in more than one split" in page.text
    assert "not shown to be better than chance" in page.text
    assert "missing 6 layer4.0, layer4.1, layer4.2, layer4.3, …" in page.text
    assert "loaded 98 –" in page.text


def test_a_sound_run_has_no_banner(report: Path) -> None:
    assert 'class="banner"' not in report.read_text()


@pytest.mark.usefixtures("quick")
def test_what_is_missing_is_said_and_the_rest_is_there(tmp_path: Path) -> None:
    data = fabricate_data(tmp_path / "data", ["a", "b"])
    run = fabricate_run(tmp_path / "other", data)
    (run / "metrics.json").unlink()
    evaluation = json.loads((run / "evaluation.json").read_text())
    del evaluation["intervals"], evaluation["calibration"]
    for entry in evaluation["per_class"].values():
        del entry["intervals"]
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    shutil.rmtree(data)
    page = Page(write_report(run).read_text())
    assert [a["id"] for a in page.all("section")] == [name for name, _ in CONTENTS]
    for words in (
        "There are no training curves",
        "This evaluation has no intervals",
        "This evaluation has no calibration",
        "The volumes cannot be shown",
        "The data were not audited",
        "the data could not be audited",
        "Versions and device were not recorded",
    ):
        assert words in page.text, words
    assert "Receiver operating characteristic" in page.text


@pytest.mark.usefixtures("quick")
def test_a_run_without_mistakes_says_so(tmp_path: Path) -> None:
    run = fabricate_run(tmp_path / "run", fabricate_data(tmp_path / "data", ["a", "b"]), skill=50.0)
    text = Page(write_report(run).read_text()).text
    assert "No test volume was misclassified." in text
    assert "It made no mistake." in text


def test_the_command_can_be_pasted_into_a_shell(run_dir: Path, report: Path) -> None:
    text = Page(report.read_text()).text
    assert f"cryo-monai train 'a bundle' '{run_dir}' --dataset_dir" in text
    assert '"lr"' in configuration_text(read_contents(run_dir))


def test_verdicts_compare_with_chance(run_dir: Path) -> None:
    run = read_contents(run_dir)
    run.evaluation["accuracy"], run.evaluation["intervals"]["accuracy"] = 0.9, [0.8, 0.95]
    assert "95 % interval 80 % to 95 %" in verdict_of(run).replace("\u00a0", " ")
    assert "not shown" not in verdict_of(run)
    run.evaluation["intervals"]["accuracy"] = [0.3, 0.95]
    assert "not shown to be better than chance" in verdict_of(run)


def test_no_text_of_a_figure_is_smaller_than_eleven_pixels_where_it_is_shown_at_its_narrowest(report: Path) -> None:
    page = Page(report.read_text())
    assert page.all("figure")
    for figure in sorted((report.parent / "figures").glob("*.svg")):
        svg = figure.read_text()
        width, sizes = page_figures.drawn_size(svg)
        shown = next(a for a in page.all("img") if a["src"] == data_uri(svg, "svg"))
        found = re.search(r"min-width: (\d+)px", str(shown["style"]))
        assert found is not None
        assert min(sizes) * int(found[1]) / width >= 11
        assert int(str(shown["width"])) >= int(found[1])
        assert int(found[1]) <= 374, figure  # whole on a telephone


def test_json_in_a_script_cannot_end_it() -> None:
    text = str(script_json({"a": "</script><!--\u2028&"}))
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": "</script><!--\u2028&"}
    with pytest.raises(ValueError, match="JSON"):
        script_json(float("nan"))


def test_undefined_numbers_are_a_dash() -> None:
    assert [decimals(value) for value in (None, float("nan"), 0.12345)] == ["–", "–", "0.123"]
    assert range_text([None, 0.3]) == range_text(None) == ""


def test_a_name_that_a_template_lacks_is_an_error() -> None:
    with pytest.raises(Exception, match="undefined"):
        render("report.html.jinja")


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run folder"):
        write_report(tmp_path)
    assert not (tmp_path / "report").exists()


def test_a_folder_that_holds_something_else_is_refused_before_any_work(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something else"):
        write_report(run_dir, tmp_path)
    with pytest.raises(InputError, match="holds a run"):
        write_report(run_dir, run_dir)
    with pytest.raises(InputError, match="is a file"):
        write_report(run_dir, tmp_path / "notes.txt")
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_all_commands_of_a_resumed_run_are_shown(tmp_path: Path) -> None:
    record = {"command": ["cryo-monai", "train", "a b"], "resumed": [{"command": ["cryo-monai", "train", "--resume"]}]}
    run: Any = SimpleNamespace(record=record)
    assert command_of(run) == "cryo-monai train 'a b'\ncryo-monai train --resume"


def test_a_drawing_of_many_points_goes_into_the_page_as_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = figures.confusion_figure([[3, 1], [0, 4]], ["a", "b"], normalised=False)
    words = {"title": "t", "alt": "a", "how": "h"}
    drawn = page_figures.page_figure("confusion_counts", figure, **words)
    assert drawn.shown["uri"] == data_uri(drawn.svg, "svg")
    monkeypatch.setattr(page_figures, "MAX_SVG_BYTES", 100)
    pixels = page_figures.page_figure("confusion_counts", figure, **words)
    assert pixels.shown["uri"] == data_uri(pixels.png, "png")
