"""Both bundles as their users run them: every configuration, every run id, real data flowing through."""

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import pytest
import torch
from conftest import BUNDLES, CLASSIFIERS, CONFIGS, MEDMNIST, SUBTOMOGRAMS, TINY, TINY_INFERENCE, training
from monai.bundle import ConfigParser, create_workflow, verify_net_in_out
from sklearn.metrics import accuracy_score

from cryo_monai.errors import InputError
from cryo_monai.mrc import write_mrc
from cryo_monai.simulation import SimulationSettings, write_dataset
from cryo_monai.workflows import FILES, load_workflow, run_workflow

EVERY_BUNDLE = pytest.mark.parametrize("bundle", CLASSIFIERS, ids=lambda p: p.name)


def configuration(bundle: Path, *names: str) -> dict[str, Any]:
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / name) for name in names])
    return parser.get()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def medmnist_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small file of AdrenalMNIST3D's layout; its hash stands in the table of official ones while these tests run."""
    from medmnist import INFO

    folder = tmp_path_factory.mktemp("medmnist")
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in {"train": 20, "val": 8, "test": 10}.items():
        labels = np.arange(count) % 2
        arrays[f"{part}_images"] = (
            rng.random((count, 28, 28, 28)) < 0.2 + 0.3 * labels[:, None, None, None]
        ) * np.uint8(255)
        arrays[f"{part}_labels"] = labels[:, None].astype(np.uint8)
    file = folder / "adrenalmnist3d.npz"
    np.savez(file, **arrays)
    official = INFO["adrenalmnist3d"]["MD5"]
    INFO["adrenalmnist3d"]["MD5"] = hashlib.md5(file.read_bytes()).hexdigest()
    yield folder
    INFO["adrenalmnist3d"]["MD5"] = official


@pytest.fixture(scope="module")
def trained_subtomograms(dataset_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("subtomograms")
    run_workflow(training(dataset_dir, run_dir, max_epochs=4))
    return run_dir


def places(run_dir: Path) -> dict[str, str]:
    return {"output_dir": str(run_dir), "ckpt_dir": str(run_dir / "models")}


def inference_ids(run_dir: Path, data: Path) -> dict[str, Any]:
    return {**TINY_INFERENCE, **places(run_dir), "dataset_dir": str(data), "num_classes": 3}


@EVERY_BUNDLE
def test_every_named_file_is_there(bundle: Path) -> None:
    for name in (
        "LICENSE",
        "docs/README.md",
        "docs/data_license.txt",
        "models/.gitkeep",
        "configs/metadata.json",
        "configs/train.json",
        "configs/evaluate.json",
        "configs/inference.json",
        "configs/logging.conf",
    ):
        assert (bundle / name).is_file(), name
    assert len((bundle / "configs" / "train.json").read_text().splitlines()) < 400


def test_the_recipe_is_the_papers() -> None:
    # Jain, Li & Xu 2024, sections 4.2 and 4.3.
    for bundle in (SUBTOMOGRAMS, MEDMNIST):
        recipe = configuration(bundle, "train.json")
        assert recipe["backbone"] == "resnet34"
        assert recipe["clip_size"] == [32, 128, 128]
        assert (recipe["batch_size"], recipe["max_epochs"], recipe["lr"]) == (32, 30, 1e-4)
        assert recipe["lr_milestones"] == [15, 22]
        assert recipe["lr_scheduler"]["gamma"] == 0.1
        clips = recipe["train"]["random_clips"]
        assert (clips["crop_prob"], clips["crop_scale"]) == (0.5, [0.5, 1.0])
        assert (clips["affine_prob"], clips["rotate_deg"], clips["translate"], clips["scale"]) == (0.5, 45, 0.1, 0.1)
    random = json.loads((CONFIGS / "initialisation" / "random.json").read_text())
    assert (random["max_epochs"], random["lr"], random["lr_milestones"]) == (100, 1e-3, [50, 75])
    video = json.loads((CONFIGS / "initialisation" / "video.json").read_text())
    assert (video["max_epochs"], video["lr"], video["lr_milestones"]) == (30, 1e-4, [15, 22])


@EVERY_BUNDLE
def test_network_and_preprocessing_are_the_same_everywhere(bundle: Path) -> None:
    train, inference = configuration(bundle, "train.json"), configuration(bundle, "inference.json")
    evaluation = configuration(bundle, "train.json", "evaluate.json")
    assert train["network_def"] == inference["network_def"] == evaluation["network_def"]
    for key in ("num_classes", "backbone", "backbone_options", "clip_size", "intensity", "precision", "dropout"):
        assert train[key] == inference[key], key
    assert train["train"]["postprocessing"] == inference["postprocessing"]
    ours, theirs = train["train"]["preprocessing"], inference["preprocessing"]
    differing = {"device"}  # training may cache on the GPU
    for one, other in zip(ours["transforms"], theirs["transforms"], strict=True):
        assert {k: v for k, v in one.items() if k not in differing} == {
            k: v for k, v in other.items() if k not in differing
        }
    assert train["validate"]["preprocessing"] == "%train#preprocessing" or train["validate"]["preprocessing"] == ours


def test_the_two_bundles_share_everything_but_their_data() -> None:
    one, other = configuration(SUBTOMOGRAMS, "train.json"), configuration(MEDMNIST, "train.json")
    for key in ("network_def", "loss", "optimizers", "optimizer", "lr_scheduler", "validate", "initialize", "training"):
        assert one[key] == other[key], key
    for key in ("dataset", "sampler", "dataloader", "random_clips", "inferer", "trainer", "history", "key_metric"):
        assert one["train"][key] == other["train"][key], key


OTHERS = ("simulation", "sweeps", "pretraining")  # of the last: test_pretraining_verbs.py
OVERLAYS = sorted(file for file in CONFIGS.rglob("*.json") if file.parent.name not in OTHERS)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_every_overlay_fits_a_bundle_and_gives_a_network(overlay: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.loads(overlay.read_text())
    assert content.pop("_desc_")
    bundle = MEDMNIST if "dataset_name" in content else SUBTOMOGRAMS
    for kind in FILES:
        workflow = load_workflow(bundle, kind, overlays=[overlay])
        there = configuration(bundle, *FILES[kind])
        for key, value in content.items():
            if key in there:
                assert workflow.parser[key] == value
            else:
                assert kind == "inference"
                assert key not in workflow.parser
        if kind == "train":
            network = workflow.parser.get_parsed_content("network_def")
            assert network.num_classes == workflow.parser["num_classes"]


def test_dataset_overlays_say_what_medmnist_says() -> None:
    from medmnist import INFO

    flags = [flag for flag in INFO if flag.endswith("3d")]
    assert len(flags) == 6
    for flag in flags:
        content = json.loads((CONFIGS / "datasets" / f"{flag}.json").read_text())
        assert content["dataset_name"] == flag
        assert content["num_classes"] == len(INFO[flag]["label"])


def test_train_evaluate_and_infer_through_monai_workflows(
    dataset_dir: Path, trained_subtomograms: Path, tmp_path: Path
) -> None:
    """Checklist rows 1, 7, 8 and 13: properties, numbers equal to scikit-learn's, the test split, the CSV."""
    run_dir = trained_subtomograms
    train = training(dataset_dir, tmp_path)
    train.initialize()
    assert train.check_properties() == []
    ids = {**TINY, **places(run_dir), "dataset_dir": str(dataset_dir), "num_classes": 3}
    evaluation = load_workflow(SUBTOMOGRAMS, "evaluate", overrides=ids)
    evaluation.initialize()
    assert evaluation.check_properties() == []
    evaluation.run()
    numbers = json.loads((run_dir / "evaluation.json").read_text())
    rows = list(csv.DictReader((run_dir / "test_predictions.csv").read_text().splitlines()))
    held_out = json.loads((dataset_dir / "dataset.json").read_text())["test"]
    assert [row["path"] for row in rows] == [str(dataset_dir / item["image"]) for item in held_out]
    truth, predicted = [row["true_class"] for row in rows], [row["class_name"] for row in rows]
    assert numbers["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    inference = load_workflow(SUBTOMOGRAMS, "inference", overrides=inference_ids(run_dir, dataset_dir))
    inference.initialize()
    assert inference.check_properties() == []
    inference.run()
    every = {row["path"]: row for row in csv.DictReader((run_dir / "predictions.csv").read_text().splitlines())}
    assert len(every) == 30
    for row in rows:  # what evaluation says of a volume, inference says too
        other = every[row["path"]]
        assert other["class_name"] == row["class_name"]
        for key in ("p_c2_64kda", "p_c7_400kda", "p_o_440kda"):
            assert float(other[key]) == pytest.approx(float(row[key]), abs=2e-3)
        assert sum(float(row[key]) for key in row if key.startswith("p_")) == pytest.approx(1, abs=1e-5)
    assert not (run_dir / "predictions.csv.part").exists()


@pytest.mark.parametrize("what", ["file", "folder", "datalist"])
def test_inference_takes_a_file_a_folder_or_a_datalist(
    dataset_dir: Path, trained_subtomograms: Path, tmp_path: Path, what: str
) -> None:
    folder = tmp_path / "new é volumes"
    folder.mkdir()
    for n in range(3):
        write_mrc(folder / f"{n}.mrc", np.random.default_rng(n).normal(size=(10, 12, 14)).astype("f4"), voxel_size=10.0)
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps([{"image": f"{folder.name}/2.mrc"}]))
    data, count = {"file": (folder / "0.mrc", 1), "folder": (folder, 3), "datalist": (listed, 1)}[what]
    ids = {**inference_ids(trained_subtomograms, data), "output_file": str(tmp_path / "out" / "p.csv")}
    run_workflow(load_workflow(SUBTOMOGRAMS, "inference", overrides=ids))
    rows = list(csv.DictReader((tmp_path / "out" / "p.csv").read_text().splitlines()))
    assert len(rows) == count
    assert list(rows[0]) == ["path", "class_name", "p_c2_64kda", "p_c7_400kda", "p_o_440kda"]


def test_training_learns_structure_and_nothing_else(tmp_path: Path) -> None:
    """The simulated classes can be told apart; with labels shuffled, held-out numbers are chance."""
    settings = SimulationSettings(box=16, voxel_size=15.0, snr=10.0, max_shift=1.0, neighbours=0)
    true = write_dataset(
        tmp_path / "data", settings, num_per_class=100, structures=("c2_64kda", "c7_400kda", "o_440kda")
    )
    content = json.loads(true.read_text())
    rng = np.random.default_rng(0)
    for split in ("training", "validation", "test"):
        labels = rng.permutation([item["label"] for item in content[split]])
        for item, label in zip(content[split], labels.tolist(), strict=True):
            item["label"] = label
    shuffled = true.with_name("shuffled.json")
    shuffled.write_text(json.dumps(content))
    auc = {}
    for data in (true, shuffled):
        run_dir = tmp_path / data.stem
        run_workflow(training(data, run_dir, max_epochs=24, lr_milestones=[16], optimizer="@optimizers#adam"))
        rows = json.loads((run_dir / "metrics.json").read_text())["history"]
        auc[data.stem] = rows[-1]["val_auc"]
    assert auc["dataset"] > 0.9
    # 20 volumes against 40 in each of three classes: the standard error of the mean AUC is below 0.1 at chance.
    assert abs(auc["shuffled"] - 0.5) < 0.3


def test_medmnist_trains_evaluates_and_infers(medmnist_dir: Path, tmp_path: Path) -> None:
    overlay = [CONFIGS / "datasets" / "adrenalmnist3d.json"]
    ids = {**TINY, **places(tmp_path), "dataset_dir": str(medmnist_dir), "device": "cpu"}
    train = load_workflow(MEDMNIST, "train", overlays=overlay, overrides=ids)
    run_workflow(train)
    assert train.check_properties() == []
    evaluation = load_workflow(MEDMNIST, "evaluate", overlays=overlay, overrides=ids)
    run_workflow(evaluation)
    assert evaluation.check_properties() == []
    numbers = json.loads((tmp_path / "evaluation.json").read_text())
    assert numbers["num_volumes"] == 10
    assert numbers["medmnist_acc"] == pytest.approx(numbers["accuracy"])
    assert numbers["medmnist_auc"] == pytest.approx(numbers["auc"])
    with np.load(medmnist_dir / "adrenalmnist3d.npz") as arrays:
        np.save(tmp_path / "one.npy", arrays["test_images"][4])
    ids = {**TINY_INFERENCE, **places(tmp_path), "dataset_dir": str(tmp_path / "one.npy")}
    inference = load_workflow(MEDMNIST, "inference", overlays=overlay, overrides=ids)
    run_workflow(inference)
    assert inference.check_properties() == []
    row = next(csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines()))
    tested = list(csv.DictReader((tmp_path / "test_predictions.csv").read_text().splitlines()))[4]
    assert row["class_name"] == tested["class_name"]
    assert [float(row[k]) for k in row if k.startswith("p_")] == pytest.approx(
        [float(tested[k]) for k in tested if k.startswith("p_")], abs=2e-3
    )


@EVERY_BUNDLE
def test_network_takes_and_gives_what_metadata_says(bundle: Path) -> None:
    # Checklist row 2, at a size for the CPU; the batch size and volume size are free.
    options = {"clip_size": [16, 32, 32], "device": "cpu"}
    for kind in ("inference.json", "train.json"):
        for batch in (1, 2):
            verify_net_in_out(
                "network_def",
                meta_file=str(bundle / "configs" / "metadata.json"),
                config_file=str(bundle / "configs" / kind),
                extra_forward_args={},
                n=batch,
                **options,
            )


@EVERY_BUNDLE
def test_metadata_describes_the_configuration(bundle: Path) -> None:
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    outputs = metadata["network_data_format"]["outputs"]["pred"]
    classes = configuration(bundle, "train.json")["num_classes"]
    assert outputs["num_channels"] == classes
    assert sorted(outputs["channel_def"], key=int) == [str(n) for n in range(classes)]
    required = (
        "schema version changelog monai_version pytorch_version numpy_version required_packages_version task "
        "description authors copyright network_data_format"
    )
    assert set(required.split()) <= metadata.keys()
    assert metadata["version"] in metadata["changelog"]


@pytest.mark.filterwarnings("ignore:parsing config_file")  # MONAI's note that a configuration is a program
def test_create_workflow_and_training_ids_work(dataset_dir: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "tiny.json"
    overlay.write_text(json.dumps(TINY))
    workflow = create_workflow(
        config_file=[str(SUBTOMOGRAMS / "configs" / "train.json"), str(overlay)],
        workflow_type="train",
        bundle_root=str(SUBTOMOGRAMS),
        dataset_dir=str(dataset_dir),
        num_classes=3,
        max_epochs=1,
        **places(tmp_path),
    )
    workflow.run()
    assert (tmp_path / "models" / "model.pt").is_file()


@EVERY_BUNDLE
@pytest.mark.filterwarnings("ignore:parsing config_file")
@pytest.mark.filterwarnings("ignore:.*bundle.*:UserWarning")
def test_monai_load_gives_the_network_with_its_weights(bundle: Path, tmp_path: Path) -> None:
    # Checklist row 5, from another working directory, with weights for a network small enough for a test.
    shutil.copytree(bundle, tmp_path / bundle.name)
    for kind in ("train", "inference"):
        file = tmp_path / bundle.name / "configs" / f"{kind}.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **TINY_INFERENCE}))
    network = load_workflow(tmp_path / bundle.name, "inference").parser.get_parsed_content("network_def")
    (tmp_path / bundle.name / "models").mkdir(exist_ok=True)
    torch.save(network.state_dict(), tmp_path / bundle.name / "models" / "model.pt")
    for kind in ("train", "inference"):
        loaded = monai.bundle.load(bundle.name, bundle_dir=str(tmp_path), workflow_type=kind, source="github")
        for key, value in network.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value), key


def monai_bundle(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300, check=False)


def test_the_commands_of_the_readme_from_another_folder(dataset_dir: Path, tmp_path: Path) -> None:
    """Checklist row 4: both run ids, any working directory, nothing written but under output_dir and ckpt_dir."""
    overlay = tmp_path / "tiny.json"
    overlay.write_text(json.dumps(TINY))
    before = sorted(p for p in BUNDLES.rglob("*") if p.is_file())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    options = ["--bundle_root", str(SUBTOMOGRAMS), "--dataset_dir", str(dataset_dir), "--num_classes", "3"]
    options += ["--output_dir", str(tmp_path / "run"), "--ckpt_dir", str(tmp_path / "run" / "models")]
    configs = SUBTOMOGRAMS / "configs"
    for name, files in {
        "training": [configs / "train.json", overlay],
        "evaluating": [configs / "train.json", configs / "evaluate.json", overlay],
        "inference": [configs / "inference.json", overlay],
    }.items():
        done = monai_bundle(name, "--config_file", str([str(f) for f in files]), *options, cwd=elsewhere)
        assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "run").iterdir()} >= {
        "models",
        "metrics.json",
        "evaluation.json",
        "predictions.csv",
    }
    assert list(elsewhere.iterdir()) == []
    assert sorted(p for p in BUNDLES.rglob("*") if p.is_file() and "__pycache__" not in p.parts) == before


def test_a_users_mistake_gets_one_line_from_monai_bundle(tmp_path: Path) -> None:
    done = monai_bundle(
        "--config_file",
        str(SUBTOMOGRAMS / "configs" / "train.json"),
        "--bundle_root",
        str(SUBTOMOGRAMS),
        "--dataset_dir",
        str(tmp_path / "nowhere"),
        "--clip_size",
        "[8,16,16]",
        cwd=tmp_path,
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last == f"error: {tmp_path / 'nowhere'}: no such file or folder; give the data with --dataset_dir"


@pytest.mark.parametrize(
    ("identifier", "reason"),
    [
        ("epochz", "epochz: no such id"),
        ("max_epoch", "did you mean max_epochs?"),
        ("train#trainer#epochs", "no such id"),
    ],
)
def test_unknown_ids_are_refused(identifier: str, reason: str) -> None:
    with pytest.raises(InputError) as caught:
        load_workflow(SUBTOMOGRAMS, "train", overrides={identifier: "5"})
    assert reason in str(caught.value)


def test_overlays_with_unknown_ids_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"train#random_clips#crop_probability": 1}')
    with pytest.raises(InputError, match=r"bad\.json: .*did you mean train#random_clips#crop_prob\?"):
        load_workflow(SUBTOMOGRAMS, "train", overlays=[tmp_path / "bad.json"])
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InputError, match=r"broken\.json: not readable"):
        load_workflow(SUBTOMOGRAMS, "train", overlays=[tmp_path / "broken.json"])
    with pytest.raises(InputError, match=r"nowhere\.json: no such file"):
        load_workflow(SUBTOMOGRAMS, "train", overlays=[tmp_path / "nowhere.json"])
    with pytest.raises(InputError, match="no such file"):
        load_workflow(tmp_path, "train")


def test_what_is_set_later_wins_where_ids_overlap(tmp_path: Path) -> None:
    """Nested ids of one source and whole objects of another, in either order."""
    whole = {"head_lr_factor": 1.0, "layer_decay": 1.0, "freeze": {}, "freeze_batch_norm": False, "l2_sp": 9.0}
    for number, content in enumerate([{"fine_tuning": whole, "fine_tuning#l2_sp": 0.5}, {"fine_tuning": whole}]):
        (tmp_path / f"{number}.json").write_text(json.dumps(content))
    both, last = tmp_path / "0.json", tmp_path / "1.json"
    for overlays, overrides, value in (
        ([both], {}, 0.5),
        ([both, last], {}, 9.0),
        ([last, both], {}, 0.5),
        ([both], {"fine_tuning": json.dumps(whole)}, 9.0),
        ([last], {"fine_tuning#l2_sp": "0.25"}, 0.25),
    ):
        parser = load_workflow(SUBTOMOGRAMS, "train", overlays=overlays, overrides=overrides).parser
        assert parser["fine_tuning#l2_sp"] == value


def test_a_nested_id_of_training_is_passed_over_by_inference(tmp_path: Path) -> None:
    overlay = tmp_path / "nested.json"
    overlay.write_text(json.dumps({"train#random_clips#crop_prob": 0.25, "clip_size": [16, 16, 16]}))
    assert load_workflow(SUBTOMOGRAMS, "train", overlays=[overlay]).parser["train#random_clips#crop_prob"] == 0.25
    inference = load_workflow(SUBTOMOGRAMS, "inference", overlays=[overlay]).parser
    assert inference["clip_size"] == [16, 16, 16]
    assert "train" not in inference


def test_values_keep_the_type_of_the_configuration() -> None:
    text = {
        "resume": "True",
        "lr": "1e-3",
        "max_epochs": "7",
        "intensity": "1e5",
        "clip_size": "[8,16,16]",
        "weights": "w.pth",
    }
    parser = load_workflow(SUBTOMOGRAMS, "train", overrides=text).parser
    values = {key: parser[key] for key in text}
    assert values == {
        "resume": True,
        "lr": 1e-3,
        "max_epochs": 7,
        "intensity": "1e5",
        "clip_size": [8, 16, 16],
        "weights": "w.pth",
    }


def test_bad_data_is_reported_whole_before_training(dataset_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for n in range(4):
            write_mrc(
                folder / name / f"{n}.mrc", np.random.default_rng(n).normal(size=(8, 8, 8)).astype("f4"), voxel_size=1.0
            )
    raw = bytearray((folder / "a" / "0.mrc").read_bytes())
    raw[1024:1028] = np.float32(np.nan).tobytes()
    for n in range(3):
        (folder / "b" / f"{n}.mrc").write_bytes(raw)
    with pytest.raises(InputError) as caught:
        run_workflow(training(folder, tmp_path / "run", num_classes=2))
    assert str(caught.value).count("1 voxels are NaN or infinite") == 3  # of every split
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_unreadable_files_are_named_for_a_user_who_is_not_root(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    path = tmp_path / "a.mrc"
    write_mrc(path, np.ones((8, 8, 8), "f4"), voxel_size=1.0)
    path.chmod(0)
    with pytest.raises(InputError, match=r"a\.mrc: Permission denied"):
        load_workflow(SUBTOMOGRAMS, "inference", overrides={"dataset_dir": str(path)}).parser.get_parsed_content(
            "dataset"
        )
