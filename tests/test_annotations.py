"""What annotation servers ask of a bundle: labels as files, the served model as the start, dropout alone."""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from conftest import MEDMNIST, SUBTOMOGRAMS, TINY, training
from monai.handlers import CheckpointLoader
from monai.transforms import Compose

from cryo_monai.annotations import AbsentItems, AnnotatedVolumes, bundle_datalist, read_annotation
from cryo_monai.datalists import load_datalist
from cryo_monai.errors import DatasetError, InputError, user_error
from cryo_monai.inferers import DropoutInferer
from cryo_monai.medmnist3d import load_medmnist
from cryo_monai.networks import VideoClassifier, read_description
from cryo_monai.volumes import LoadVolumed
from cryo_monai.workflows import load_workflow, run_workflow

CLASSES = ("Ribosome", "proteasome", "7")


def written(file: Path, content: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content) if file.suffix == ".json" else content)
    return file


def painted(file: Path, *values: float, dtype: str = "u1") -> Path:
    array = np.zeros((4, 5, 6), dtype)
    array.ravel()[: len(values)] = values
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), file)
    return file


@pytest.mark.parametrize(
    ("said", "label"),
    [
        ("proteasome", 1),
        ("RIBOSOME", 0),  # MONAI Label shows names in lower case
        (2, 2),
        ("1", 1),
        ("7", 2),  # a name before an index
        ({"label": "ribosome"}, 0),
        ({"label": 1}, 1),
        ({"prediction": [{"idx": 0, "label": "a", "score": 0.2}, {"idx": 1, "label": "b", "score": 0.8}]}, 1),
    ],
)
def test_a_class_is_given_by_name_by_index_or_as_monai_label_answers(tmp_path: Path, said: Any, label: int) -> None:
    assert read_annotation(written(tmp_path / "label.json", said), CLASSES) == label
    if isinstance(said, str):
        assert read_annotation(written(tmp_path / "label.txt", f"{said}\n"), CLASSES) == label


@pytest.mark.parametrize("said", ["ribosom", 3, -1, True, None, 1.0, {}, {"label": None}, {"prediction": []}, [0]])
def test_anything_else_is_refused_with_the_classes_there_are(tmp_path: Path, said: Any) -> None:
    with pytest.raises(InputError, match=r"label\.json: .* is no class; .* 0 Ribosome, 1 proteasome, 2 7"):
        read_annotation(written(tmp_path / "label.json", said), CLASSES)


def test_names_that_differ_in_capital_letters_are_told_apart(tmp_path: Path) -> None:
    for label, name in enumerate(("a", "A")):
        assert read_annotation(written(tmp_path / "label.txt", name), ("a", "A")) == label
    with pytest.raises(InputError, match="'á' is no class"):
        read_annotation(written(tmp_path / "label.txt", "á"), ("a", "A"))


def test_files_that_are_no_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"label\.nrrd: labels end in \.json, \.txt, \.nii, \.nii\.gz"):
        read_annotation(written(tmp_path / "label.nrrd", ""), CLASSES)
    with pytest.raises(InputError, match="not readable as JSON"):
        read_annotation(written(tmp_path / "label.txt", "{").rename(tmp_path / "label.json"), CLASSES)
    with pytest.raises(InputError, match=r"absent\.txt: not readable as text"):
        read_annotation(tmp_path / "absent.txt", CLASSES)
    with pytest.raises(InputError, match=r"label\.nii"):
        read_annotation(written(tmp_path / "label.nii", "no NIfTI"), CLASSES)


def test_a_label_map_paints_one_class(tmp_path: Path) -> None:
    for label in range(3):
        assert read_annotation(painted(tmp_path / "map.nii.gz", label + 1, label + 1), CLASSES) == label
    with pytest.raises(InputError, match="2 classes are painted"):
        read_annotation(painted(tmp_path / "map.nii.gz", 1, 2), CLASSES)
    with pytest.raises(InputError, match="0 classes are painted"):
        read_annotation(painted(tmp_path / "map.nii.gz"), CLASSES)
    with pytest.raises(InputError, match="3 is no class"):
        read_annotation(painted(tmp_path / "map.nii.gz", 4), CLASSES)


def test_a_label_map_of_floats_is_as_good_as_one_of_whole_numbers(tmp_path: Path) -> None:
    for dtype in ("f4", "f8", "i2"):
        assert read_annotation(painted(tmp_path / "map.nii", 2, dtype=dtype), CLASSES) == 1


@pytest.mark.parametrize("value", [1.6, 0.4, -0.5, float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_no_whole_number_paints_no_class(tmp_path: Path, value: float) -> None:
    with pytest.raises(InputError, match=r"map\.nii: .* is painted in this label map; paint one class") as caught:
        read_annotation(painted(tmp_path / "map.nii", value, dtype="f4"), CLASSES)
    assert "\n" not in str(caught.value)


def test_label_maps_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    colours = np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colours, np.eye(4)), tmp_path / "colours.nii")
    content = bytearray(painted(tmp_path / "plain.nii", 1).read_bytes())
    content[70:72] = b"\xff\x7f"  # the type of the voxels
    (tmp_path / "type.nii").write_bytes(content)
    content = bytearray(painted(tmp_path / "whole.nii.gz", 1).read_bytes())
    content[20:40] = b"\xff" * 20
    (tmp_path / "damaged.nii.gz").write_bytes(content)
    for name in ("colours.nii", "type.nii", "damaged.nii.gz"):
        with pytest.raises(InputError, match=name):
            read_annotation(tmp_path / name, CLASSES)


def test_the_servers_index_names_what_is_painted(tmp_path: Path) -> None:
    """MONAI Label 0.8.5 keeps what 3D Slicer sends with a label: the names of the segments by value."""
    file = painted(tmp_path / "labels" / "final" / "v.nii.gz", 1)
    info = {"name": "v.nii.gz", "label_info": [{"name": "proteasome", "idx": 1}, {"name": "ribosome", "idx": 2}]}
    entry = {"image": {"ext": ".nii.gz", "info": {}}, "labels": {"final": {"ext": ".nii.gz", "info": info}}}
    written(tmp_path / "datastore_v2.json", {"objects": {"other": {"labels": {}}, "v": entry}})
    assert read_annotation(file, CLASSES) == 1
    assert read_annotation(painted(file, 2), CLASSES) == 0
    assert read_annotation(painted(file, 3), CLASSES) == 2  # the index is silent: the value less one


@pytest.mark.parametrize(
    "index",
    [
        [],
        None,
        {"objects": []},
        {"objects": {"v": None}},
        {"objects": {"v": {"labels": []}}},
        {"objects": {"v": {"labels": {"final": {"info": {"name": "v.nii.gz", "label_info": ["proteasome"]}}}}}},
        {"objects": {"v": {"labels": {"final": {"info": {"name": "v.nii.gz", "label_info": [{"idx": 1}]}}}}}},
        {"objects": {"v": {"labels": {"final": {"info": {"name": "v.nii.gz", "label_info": [{"idx": "1"}]}}}}}},
    ],
    ids=json.dumps,
)
def test_an_index_of_other_types_is_named(tmp_path: Path, index: Any) -> None:
    file = painted(tmp_path / "labels" / "final" / "v.nii.gz", 1)
    written(tmp_path / "datastore_v2.json", index)
    with pytest.raises(InputError, match=r"datastore_v2\.json: not an index of labels of MONAI Label"):
        read_annotation(file, CLASSES)


def annotated(folder: Path, labels: list[Any]) -> list[dict[str, str]]:
    items = []
    for number, label in enumerate(labels):
        image = folder / f"{number}.nii.gz"
        folder.mkdir(parents=True, exist_ok=True)
        voxels = np.random.default_rng(number).normal(size=(12, 14, 16)).astype("f4")
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), image)
        items.append({"image": str(image), "label": str(written(folder / "labels" / f"{number}.json", label))})
    return items


def test_a_servers_items_become_ours(tmp_path: Path) -> None:
    items = annotated(tmp_path, ["ribosome", 2])
    dataset = AnnotatedVolumes(
        items,
        Compose([LoadVolumed("image")]),
        class_names=CLASSES,
        also_check=AbsentItems(InputError("not looked at")),
        progress=False,
    )
    assert dataset.annotated
    assert [(row["label"], row["index"], row["path"]) for row in dataset] == [
        (0, 0, items[0]["image"]),
        (2, 1, items[1]["image"]),
    ]
    assert dataset[0]["image"].shape == (1, 16, 14, 12)


def test_every_label_that_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        AnnotatedVolumes(annotated(tmp_path, ["a", 0, "b"]), LoadVolumed("image"), class_names=CLASSES, progress=False)
    assert len(caught.value.problems) == 2
    maps = [painted(tmp_path / f"{n}.nii", value, dtype="f4") for n, value in enumerate((float("nan"), 1, 1.6))]
    items = [{"image": "unread", "label": str(file)} for file in maps]
    with pytest.raises(DatasetError, match=r"2 problems\n.*0\.nii.*\n.*2\.nii"):
        AnnotatedVolumes(items, LoadVolumed("image"), class_names=CLASSES, progress=False)
    with pytest.raises(InputError, match="no labelled volumes"):
        AnnotatedVolumes([], LoadVolumed("image"), class_names=CLASSES, progress=False)


def test_only_a_bundles_own_missing_data_may_come_later(tmp_path: Path) -> None:
    written(
        tmp_path / "configs" / "metadata.json",
        {"network_data_format": {"outputs": {"pred": {"channel_def": {"1": "b", "0": "a"}}}}},
    )
    for load, options in ((load_datalist, {}), (load_medmnist, {"flag": "organmnist3d"})):
        found = bundle_datalist(load, tmp_path, dataset_dir=tmp_path / "data", **options)
        assert found["class_names"] == ["a", "b"]
        for use in (len, list, lambda items: items[0], lambda items: len(items + items)):
            with pytest.raises(InputError, match="data"):
                use(found["training"])
        with pytest.raises(InputError, match="elsewhere"):
            bundle_datalist(load, tmp_path, dataset_dir=tmp_path / "elsewhere", **options)
    # The names that a model was trained with come before those of the metadata.
    network = VideoClassifier(3, backbone="resnet18", backbone_options=TINY["backbone_options"], clip_size=(4, 16, 16))
    network.set_class_names(CLASSES)
    (tmp_path / "models").mkdir()
    torch.save(network.state_dict(), tmp_path / "models" / "model.pt")
    assert bundle_datalist(load_datalist, tmp_path, dataset_dir=tmp_path / "data")["class_names"] == list(CLASSES)
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError, match="one folder of volumes per class"):
        bundle_datalist(load_datalist, tmp_path, dataset_dir=tmp_path / "data")


@pytest.mark.parametrize("bundle", [SUBTOMOGRAMS, MEDMNIST], ids=lambda p: p.name)
def test_a_bundle_trains_on_what_a_server_brings(bundle: Path, tmp_path: Path) -> None:
    """As MONAI Label 0.8.5 runs it: its lists and a CheckpointLoader over train.json, in a folder without data."""
    classes = len(
        json.loads((bundle / "configs" / "metadata.json").read_text())["network_data_format"]["outputs"]["pred"][
            "channel_def"
        ]
    )
    root = tmp_path / "model"
    ids = {**TINY, "max_epochs": 1, "device": "cpu", "num_classes": classes, "ckpt_dir": str(root / "models")}
    ids |= {"output_dir": str(root / "output"), "bundle_root": str(root), "dataset_dir": str(root / "data")}
    workflow = load_workflow(bundle, "train", overrides=ids)
    names = [f"name {number}" for number in range(classes)]
    network = workflow.parser.get_parsed_content("network_def")
    network.set_class_names(names)
    network.temperature = 7.0
    (root / "models").mkdir(parents=True)
    torch.save(network.state_dict(), root / "models" / "model.pt")
    torch.save({}, root / "models" / "last.pt")
    before = network.state_dict()
    items = annotated(tmp_path / "studies", [names[n % classes] for n in range(6)])
    workflow = load_workflow(bundle, "train", overrides=ids)
    handlers = workflow.parser["train#handlers"]
    start = {
        "_target_": CheckpointLoader.__name__,
        "load_path": str(root / "models" / "model.pt"),
        "load_dict": {"model": "$@network"},
        "strict": False,
    }
    workflow.parser["train#handlers"] = [start, *handlers]
    workflow.parser["train#dataset#data"] = items[:4]
    workflow.parser["validate#dataset#data"] = items[4:]
    run_workflow(workflow)
    assert [file.name for file in (root / "models").iterdir()] == ["model.pt"]
    after = torch.load(root / "models" / "model.pt")
    assert read_description(after["_extra_state"])["class_names"] == names
    # The loss begins at that of the served weights, at temperature 1.
    moved = (after["head.1.weight"] - before["head.1.weight"]).abs().max()
    assert 0 < moved < 0.1
    row = json.loads((root / "output" / "metrics.json").read_text())["history"][0]
    assert read_description(after["_extra_state"])["temperature"] == pytest.approx(row["val_temperature"])


def test_the_temperature_of_a_served_model_does_not_stay_in_training(dataset_dir: Path, tmp_path: Path) -> None:
    losses = []
    for temperature in (1.0, 50.0):
        workflow = training(dataset_dir, tmp_path / str(temperature), max_epochs=1)
        workflow.initialize()
        workflow.parser.get_parsed_content("network").temperature = temperature
        workflow.run()
        rows = json.loads((tmp_path / str(temperature) / "metrics.json").read_text())["history"]
        losses.append((rows[0]["train_loss"], rows[0]["val_loss"]))
    assert losses[0] == losses[1]


def test_other_programs_get_the_reason_when_nobody_brings_data(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text((SUBTOMOGRAMS / "configs" / "metadata.json").read_text())
    ids = {**TINY, "bundle_root": str(tmp_path), "dataset_dir": str(tmp_path / "data"), "device": "cpu"}
    workflow = load_workflow(SUBTOMOGRAMS, "train", overrides=ids)
    with pytest.raises(RuntimeError) as caught:
        workflow.parser.get_parsed_content("train#dataset")
    assert (
        str(user_error(caught.value))
        == f"{tmp_path / 'data'}: no such file or folder; give the data with --dataset_dir"
    )


def test_uncertainty_is_asked_of_dropout_alone() -> None:
    options = {"backbone": "resnet18", "backbone_options": TINY["backbone_options"], "clip_size": (8, 16, 16)}
    volumes = torch.rand(1, 1, 10, 12, 14, generator=torch.Generator().manual_seed(0))
    ask = DropoutInferer()
    for dropout in (0.0, 0.5):
        torch.manual_seed(0)
        network = VideoClassifier(3, dropout=dropout, **options)
        before = {key: value.clone() for key, value in network.state_dict().items()}
        with torch.no_grad():
            certain = network.eval()(volumes)
            assert torch.equal(ask(volumes, network), certain)
            network.train()
            sampled = torch.cat([ask(volumes, network) for _ in range(4)])
        assert len(sampled.unique(dim=0)) == (4 if dropout else 1)
        assert dropout or torch.equal(sampled[:1], certain)
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
