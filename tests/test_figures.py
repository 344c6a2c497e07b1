import itertools
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cryo_monai.colours import colour_of
from cryo_monai.reports.canvases import new_figure, short_names
from cryo_monai.reports.figures import (
    confusion_figure,
    embedding_figure,
    png_of,
    precision_recall_figure,
    recall_figure,
    reliability_figure,
    roc_figure,
    run_curves,
    svg_of,
    training_curves,
)


def history(epochs: int, *, old: bool = False) -> list[dict[str, Any]]:
    rows = []
    for epoch in range(1, epochs + 1):
        row = {"epoch": epoch, "lr": 1e-3 if epoch < 4 else 1e-4, "train_loss": 2 / epoch, "train_accuracy": 0.5}
        row |= {"val_accuracy": 0.1 * epoch, "val_auc": None, "key_metric": 0.1 * epoch if epoch < 6 else 0.2}
        rows.append(row if old else row | {"val_loss": 3 / epoch})
    return rows


def scores(classes: int, *, absent: tuple[int, ...] = (), count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.choice([label for label in range(classes) if label not in absent], count)
    probabilities = rng.dirichlet(np.ones(classes), count)
    probabilities[np.arange(count), labels] += 0.2
    return probabilities / probabilities.sum(1, keepdims=True), labels


def bins(count: int = 10) -> list[dict[str, Any]]:
    edges = np.linspace(0, 1, count + 1)
    return [
        {
            "lower": low,
            "upper": high,
            "count": n,
            "confidence": low + 0.05 if n else None,
            "accuracy": 0.5 if n else None,
        }
        for n, (low, high) in enumerate(itertools.pairwise(edges))
    ]


def names(count: int) -> list[str]:
    return [f"class {n}" for n in range(count)]


def texts(figure: Any) -> str:
    return " ".join("".join(element.itertext()) for element in ET.fromstring(svg_of(figure)).iter() if element.text)


FIGURES: dict[str, Callable[[], Any]] = {
    "training": lambda: training_curves(history(8)),
    "training, old": lambda: training_curves(history(8, old=True)),
    "training, one epoch": lambda: training_curves(history(1)),
    "training, none": lambda: training_curves([]),
    "runs": lambda: run_curves({"a": history(8), "b <i>": history(3, old=True), "c": history(1), "none": []}),
    "confusion": lambda: confusion_figure([[3, 1], [0, 0]], ["a", "b"], normalised=False),
    "confusion, row without volumes": lambda: confusion_figure([[3, 1], [0, 0]], ["a", "b"], normalised=True),
    "confusion, nothing": lambda: confusion_figure(np.zeros((3, 3), int).tolist(), names(3), normalised=False),
    "confusion, 50 classes": lambda: confusion_figure(np.eye(50, dtype=int).tolist(), names(50), normalised=True),
    "roc": lambda: roc_figure(*scores(3), names(3)),
    "roc, class absent": lambda: roc_figure(*scores(11, absent=(4,)), names(11)),
    "roc, one class": lambda: roc_figure(*scores(2, absent=(1,)), names(2)),
    "roc, 50 classes": lambda: roc_figure(*scores(50, count=400), names(50)),
    "precision recall": lambda: precision_recall_figure(*scores(11, absent=(4,)), names(11)),
    "precision recall, 50 classes": lambda: precision_recall_figure(*scores(50, count=400), names(50)),
    "recall": lambda: recall_figure(
        names(3),
        {"a": [0.5, None, 1.0], "b": [0.0, None, 0.2]},
        {"a": [[0.4, 0.6], None, [0.8, 1.0]], "b": [None, None, [0.1, 0.3]]},
    ),
    "recall, 50 classes": lambda: recall_figure(names(50), {"a": [0.5] * 50}, {"a": [None] * 50}),
    "reliability": lambda: reliability_figure(bins(), bins()),
    "reliability, empty": lambda: reliability_figure([{**entry, "count": 0} for entry in bins()], []),
    "embedding": lambda: embedding_figure(np.random.default_rng(0).normal(size=(60, 2)), scores(11)[1] - 1, names(11)),
    "embedding, many": lambda: embedding_figure(np.zeros((2500, 2)), np.zeros(2500, int), names(50), title="t"),
}


@pytest.mark.parametrize("make", FIGURES.values(), ids=FIGURES)
def test_a_figure_is_the_same_valid_picture_each_time(make: Callable[[], Any], tmp_path: Any) -> None:
    figure, again = make(), make()
    svg = svg_of(figure)
    root = ET.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label") == figure.get_label() != ""
    assert not re.search(r"<metadata|<!DOCTYPE|https?://(?!www.w3.org)", svg)
    assert svg == svg_of(again)
    picture_bytes = png_of(figure, dpi=100)
    assert picture_bytes == png_of(again, dpi=100)
    (tmp_path / "f.png").write_bytes(picture_bytes)
    picture = np.asarray(Image.open(tmp_path / "f.png").convert("L"))
    assert picture.shape[1] >= 420
    assert picture.std() > 5
    margin = np.concatenate([picture[:, 0], picture[:, -1], picture[0], picture[-1]])
    assert margin.min() == 255  # nothing is cut off


def test_two_pictures_of_one_page_share_no_ids_with_different_content() -> None:
    first, second = svg_of(training_curves(history(8))), svg_of(roc_figure(*scores(3), names(3)))
    for svg in (first, second):
        ids = re.findall(r' id="([^"]*)"', svg)
        assert len(ids) == len(set(ids))
        assert set(ids) == set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    content = [dict(re.findall(r'<path id="([^"]*)" d="([^"]*)"', svg)) for svg in (first, second)]
    assert all(content[1][key] == value for key, value in content[0].items() if key in content[1])


def test_text_stays_text_and_names_are_taken_literally() -> None:
    found = texts(embedding_figure(np.zeros((4, 2)), np.array([0, 0, 1, -1]), ["$x_1$ & <b>", "70S", "none here"]))
    for expected in ("$x_1$ & <b>", "70S", "none here (none)", "unknown"):
        assert expected in found


def test_the_best_epoch_and_the_drops_of_the_rate_are_marked() -> None:
    found = texts(training_curves(history(8)))
    assert "best epoch 5" in found
    assert "lr 1e-4" in found
    assert "best epoch 3" in texts(training_curves(history(8), best_epoch=3))
    falling = [{**row, "lr": 0.4 ** row["epoch"]} for row in history(9)]
    assert "lr " not in texts(training_curves(falling))


def test_numbers_of_the_curves_are_scikit_learns() -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    probabilities, labels = scores(3)
    for label in range(3):
        area = roc_auc_score(labels == label, probabilities[:, label])
        precision = average_precision_score(labels == label, probabilities[:, label])
        assert f"class {label} {area:.3f}" in texts(roc_figure(probabilities, labels, names(3)))
        assert f"class {label} {precision:.3f}" in texts(precision_recall_figure(probabilities, labels, names(3)))


def test_of_many_classes_the_worst_are_named() -> None:
    probabilities, labels = scores(20, count=400)
    probabilities[labels == 13, 13] = 0
    found = texts(roc_figure(probabilities, labels, names(20)))
    assert "class 13 " in found
    assert "14 others ≥" in found


def test_cells_show_counts_or_shares_of_their_row() -> None:
    matrix = [[9, 3], [0, 0]]
    assert {"9", "3", "0"} <= set(texts(confusion_figure(matrix, ["a", "b"], normalised=False)).split())
    assert {".75", ".25", "–"} <= set(texts(confusion_figure(matrix, ["a", "b"], normalised=True)).split())


def test_classes_keep_colour_and_shape_whichever_are_present() -> None:
    axis = embedding_figure(np.zeros((3, 2)), np.array([2, 2, 2]), names(3)).axes[0]
    shown = [collection for collection in axis.collections if len(collection.get_offsets())]
    assert len(shown) == 1
    red, green, blue = (int(colour_of(2)[n : n + 2], 16) / 255 for n in (1, 3, 5))
    assert shown[0].get_facecolor()[0][:3] == pytest.approx([red, green, blue])


def test_cut_names_stay_different() -> None:
    assert short_names(["ribosome", "70S"], 10) == ["ribosome", "70S"]
    assert short_names(["abcdefghijklmnop", "b"], 7) == ["abc…nop", "b"]
    many = short_names([f"a_long_prefix_{n}_a_long_suffix" for n in range(3)], 12)
    assert len(set(many)) == 3
    assert all(len(name) <= 12 for name in many)


def test_ids_of_a_picture_are_its_own_and_free_of_rounding() -> None:
    def drawn(left: float) -> str:
        figure = new_figure(2, label="a line")
        figure.set_layout_engine("none")
        axes = figure.add_axes((left, 0.2, 0.7, 0.7))
        axes.plot([0, 1], [0, 1], marker="o")
        return svg_of(figure)

    def ids(text: str) -> set[str]:
        return set(re.findall(r' id="([^"]+)"', text))

    text = drawn(0.1)
    assert drawn(0.1 * (1 + 1e-15)) == text
    assert ids(text) == set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
    assert ids(text)
    assert not ids(text) & ids(drawn(0.15))
