import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference
from torch.utils.data import default_collate

from cryo_monai.errors import InputError
from cryo_monai.evaluations import EvaluationReport
from cryo_monai.metrics import (
    MedMNISTEvaluator,
    accuracy,
    auc,
    classification_metrics,
    cross_entropy,
    macro_f1,
    temperature,
)


def scores(count: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, count - classes)])
    probabilities = rng.dirichlet(np.ones(classes), count)
    probabilities[np.arange(count), labels] += 0.3
    return probabilities / probabilities.sum(1, keepdims=True), labels


@settings(max_examples=20, deadline=None)
@given(count=st.integers(20, 60), classes=st.integers(2, 6), seed=st.integers(0, 99))
def test_every_number_equals_scikit_learns(count: int, classes: int, seed: int) -> None:
    probabilities, labels = scores(count, classes, seed)
    ours = classification_metrics(probabilities, labels, [str(n) for n in range(classes)])
    predicted = probabilities.argmax(1)
    assert ours["accuracy"] == pytest.approx(reference.accuracy_score(labels, predicted))
    assert ours["balanced_accuracy"] == pytest.approx(reference.balanced_accuracy_score(labels, predicted))
    assert ours["macro_f1"] == pytest.approx(reference.f1_score(labels, predicted, average="macro"))
    expected = (
        reference.roc_auc_score(labels, probabilities[:, 1])
        if classes == 2
        else reference.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    )
    assert ours["auc"] == pytest.approx(expected)
    assert ours["confusion_matrix"] == reference.confusion_matrix(labels, predicted).tolist()
    tensors = torch.tensor(probabilities), torch.tensor(labels)
    assert accuracy(*tensors) == pytest.approx(ours["accuracy"])
    assert auc(*tensors) == pytest.approx(ours["auc"])


def test_an_absent_class_keeps_its_row_and_undefined_numbers_are_none() -> None:
    probabilities = np.eye(3)[[0, 0, 1]]
    ours = classification_metrics(probabilities, np.array([0, 0, 1]), ["a", "b", "c"])
    assert ours["auc"] == 1
    assert ours["per_class"]["c"] == {"precision": None, "recall": None, "f1": None, "auc": None, "support": 0}
    assert np.shape(ours["confusion_matrix"]) == (3, 3)
    alone = classification_metrics(probabilities[:2], np.array([0, 0]), ["a", "b", "c"])
    assert alone["auc"] is None
    assert math.isnan(auc(torch.tensor(probabilities[:2]), torch.tensor([0, 0])))


@pytest.mark.parametrize(("flag", "classes"), [("organmnist3d", 11), ("adrenalmnist3d", 2)])
def test_medmnist_numbers_are_those_of_its_own_evaluator(tmp_path: Path, flag: str, classes: int) -> None:
    from medmnist import Evaluator

    probabilities, labels = scores(40, classes, 0)
    np.savez(tmp_path / f"{flag}.npz", test_labels=labels[:, None])
    official = Evaluator(flag, "test", root=str(tmp_path)).evaluate(probabilities)
    ours = MedMNISTEvaluator(flag)(probabilities, labels)
    assert ours == {"medmnist_auc": official.AUC, "medmnist_acc": official.ACC}


def test_scores_of_a_network_that_diverged() -> None:
    broken, labels = torch.tensor([[0.9, 0.1], [0.2, 0.8], [math.nan, math.nan]]), torch.tensor([0, 1, 1])
    # Training goes on, and no such epoch is the best; a final score is refused.
    assert [math.isnan(metric(broken, labels)) for metric in (accuracy, auc, macro_f1, cross_entropy)] == [True] * 4
    assert temperature(broken, labels) == 1.0
    with pytest.raises(InputError, match=r"^scores of 1 of 3 volumes are not finite: training diverged; lower --lr$"):
        classification_metrics(broken.double().numpy(), labels.numpy(), ["a", "b"])


def test_what_is_undefined_is_none() -> None:
    probabilities = np.array([[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.6, 0.3, 0.1]])
    found = classification_metrics(probabilities, np.array([0, 0, 1]), ["a", "never named", "absent"])
    assert found["per_class"]["never named"] | {"auc": None} == {
        "precision": None,
        "recall": 0.0,
        "f1": 0.0,
        "auc": None,
        "support": 1,
    }
    absent = found["per_class"]["absent"]
    assert [absent[name] for name in ("precision", "recall", "f1", "auc")] == [None] * 4
    assert found["macro_f1"] == pytest.approx((0.8 + 0) / 2)


@pytest.mark.parametrize("decollate", [True, False])
def test_the_report_writes_what_it_collected(tmp_path: Path, decollate: bool) -> None:
    probabilities, labels = scores(12, 3, 1)
    names = ["a", "b, c", "d"]
    report = EvaluationReport(tmp_path, names, extra=lambda p, y: {"extra": float(len(y))})
    engine = SimpleNamespace(state=SimpleNamespace(batch=None, output=None))
    report._start(engine)
    for part in (slice(0, 7), slice(7, 12)):
        pairs = zip(probabilities[part], labels[part], strict=True)
        batch = [{"path": f"{n}.mrc"} for n in range(12)[part]]
        output = [{"pred": torch.tensor(p), "label": torch.tensor(y)} for p, y in pairs]
        engine.state.batch = batch if decollate else default_collate(batch)
        engine.state.output = output if decollate else default_collate(output)
        report._collect(engine)
    report._write(engine)
    numbers = json.loads((tmp_path / "evaluation.json").read_text())
    assert numbers["accuracy"] == pytest.approx(np.mean(probabilities.argmax(1) == labels))
    assert numbers["extra"] == 12
    rows = list(csv.DictReader((tmp_path / "test_predictions.csv").read_text().splitlines()))
    assert [row["path"] for row in rows] == [f"{n}.mrc" for n in range(12)]
    assert [row["class_name"] for row in rows] == [names[n] for n in probabilities.argmax(1)]
    assert float(rows[3]["p_b, c"]) == pytest.approx(probabilities[3, 1], abs=1e-6)
    table = list(csv.reader((tmp_path / "confusion_matrix.csv").read_text().splitlines()))
    assert [[int(n) for n in row[1:]] for row in table[1:]] == numbers["confusion_matrix"]
