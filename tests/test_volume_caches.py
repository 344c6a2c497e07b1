import json
import logging
import os
import resource
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SUBTOMOGRAMS, TINY
from monai.transforms import Compose, Lambdad
from torch.utils.data import DataLoader

from cryo_monai import datalists, volume_caches
from cryo_monai.datalists import load_datalist
from cryo_monai.datasets import CachedVolumes
from cryo_monai.errors import DatasetError
from cryo_monai.mrc import write_mrc
from cryo_monai.runs import read_json, train_bundle
from cryo_monai.volume_caches import VolumeCache, volume_key
from cryo_monai.volumes import LoadVolumed

SHAPE = (10, 12, 14)
LOAD = Compose([LoadVolumed("image")])


def voxels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SHAPE).astype("f4")


def write(folder: Path, count: int, *, first: int = 0) -> list[dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number}.mrc" for number in range(first, first + count)]
    for number, path in enumerate(paths, start=first):
        write_mrc(path, voxels(number), voxel_size=10.0)
    return [{"image": str(p), "path": str(p), "label": n % 2, "index": n} for n, p in enumerate(paths)]


def opened(items: list[dict[str, Any]], folder: Path | None, **options: Any) -> CachedVolumes:
    return CachedVolumes(items, options.pop("transform", LOAD), progress=False, cache_dir=folder, **options)


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.bin"))


def same(one: CachedVolumes, other: CachedVolumes) -> bool:
    pairs = list(zip(one, other, strict=True))
    keys = all(a.keys() == b.keys() and a["label"] == b["label"] for a, b in pairs)
    return keys and all(a["image"].dtype == b["image"].dtype and torch.equal(a["image"], b["image"]) for a, b in pairs)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose voxels were read."""
    names: list[str] = []
    read = volume_caches.LoadVolumed.__call__

    def noted(self: LoadVolumed, data: Any) -> Any:
        names.append(Path(str(data["path"])).name)
        return read(self, data)

    monkeypatch.setattr(LoadVolumed, "__call__", noted)
    return names


def test_later_data_sets_read_no_file_that_an_earlier_one_read(tmp_path: Path, reads: list[str]) -> None:
    items, cache = write(tmp_path / "data", 8), tmp_path / "cache"
    few = opened(items[:2], cache, also_check=items[5:])
    assert sorted(reads) == ["0.mrc", "1.mrc", "5.mrc", "6.mrc", "7.mrc"]
    del reads[:]
    all_labels = opened(items[:5], cache, also_check=items[5:])
    assert sorted(reads) == ["2.mrc", "3.mrc", "4.mrc"]
    del reads[:]
    test, again = opened(items[5:], cache), opened(items[:5], cache, also_check=items[5:])
    assert reads == []
    assert same(few, opened(items[:2], None))
    assert same(all_labels, opened(items[:5], None))
    assert same(again, all_labels)
    assert same(test, opened(items[5:], None))
    assert len(parts(cache)) == 2
    assert not list(cache.glob("*.tmp"))


def test_volumes_are_mapped_and_writing_to_one_changes_no_other_process(tmp_path: Path) -> None:
    items, cache = write(tmp_path / "data", 2), tmp_path / "cache"
    for dataset in (opened(items, cache), opened(items, cache)):
        begin = dataset[0]["image"].data_ptr()
        maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if ".bin" in line]
        ranges = [tuple(int(end, 16) for end in fields[0].split("-")) for fields in maps]
        assert any(low <= begin < high for low, high in ranges)
        dataset[0]["image"].zero_()
    assert same(opened(items, cache), opened(items, None))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_those_without_a_cache(tmp_path: Path, num_workers: int) -> None:
    items, cache = write(tmp_path / "data", 6), tmp_path / "cache"
    expected = list(DataLoader(opened(items, None), batch_size=3))
    for _ in range(2):
        loader = DataLoader(opened(items, cache), batch_size=3, num_workers=num_workers, timeout=30 * bool(num_workers))
        for batch, wanted in zip(loader, expected, strict=True):
            assert torch.equal(batch["image"], wanted["image"])
            assert batch["path"] == wanted["path"]


def test_training_is_bitwise_what_it_is_without_a_cache(dataset_dir: Path, tmp_path: Path) -> None:
    ids = {**TINY, "num_classes": 3, "dataset_dir": str(dataset_dir), "device": "cpu", "max_epochs": 1}
    cache = tmp_path / "cache"
    for name, folder in (("none", None), ("first", str(cache)), ("second", str(cache))):
        train_bundle(SUBTOMOGRAMS, tmp_path / name, ids={**ids, "cache_dir": folder})
    assert len(parts(cache)) == 1
    wanted = torch.load(tmp_path / "none/models/model.pt", weights_only=True)
    for name in ("first", "second"):
        found = torch.load(tmp_path / name / "models/model.pt", weights_only=True)
        tensors = [key for key, value in wanted.items() if isinstance(value, torch.Tensor)]
        assert len(tensors) > 50
        assert all(torch.equal(wanted[key], found[key]) for key in tensors)
        rows = [read_json(tmp_path / run / "metrics.json")["history"][0] for run in ("none", name)]
        assert rows[0].keys() == rows[1].keys()
        assert all(rows[0][key] == rows[1][key] for key in rows[0] if "seconds" not in key and "per_second" not in key)


@pytest.mark.parametrize("bad", ["nan", "truncated", "size"])
def test_a_data_set_with_problems_reports_them_every_time_and_is_not_kept(tmp_path: Path, bad: str) -> None:
    items, cache = write(tmp_path / "data", 4), tmp_path / "cache"
    broken = Path(items[2]["path"])
    if bad == "truncated":
        broken.write_bytes(broken.read_bytes()[:-4])
    elif bad == "nan":
        broken.write_bytes(broken.read_bytes()[:-4] + np.float32(np.nan).tobytes())
    else:
        write_mrc(broken, voxels(0)[:8], voxel_size=10.0)
    messages = []
    for folder in (None, cache, cache):
        with pytest.raises(DatasetError) as caught:
            opened(items[:2], folder, also_check=items[2:])
        messages.append(str(caught.value))
    assert messages[0] == messages[1] == messages[2]
    assert [entry.name for entry in cache.iterdir()] == [volume_caches.LOCK]


def test_a_volume_that_loading_warns_of_warns_every_time(tmp_path: Path) -> None:
    items, cache = write(tmp_path / "data", 3), tmp_path / "cache"
    write_mrc(items[1]["path"], np.ones(SHAPE, "f4"), voxel_size=10.0)
    for _ in range(3):
        with pytest.warns(UserWarning, match=r"1\.mrc: every voxel has the same value"):
            opened(items, cache)
    assert len(parts(cache)) == 1


@pytest.mark.parametrize("change", ["content", "same size and time", "replaced with its time", "larger"])
def test_a_changed_file_is_read_again(tmp_path: Path, reads: list[str], change: str) -> None:
    items, cache = write(tmp_path / "data", 3), tmp_path / "cache"
    opened(items, cache)
    del reads[:]
    file = Path(items[1]["path"])
    before = file.stat()
    if change == "larger":
        write_mrc(file, np.pad(voxels(9), 1), voxel_size=10.0)
        items = items[1:2]
    elif change == "replaced with its time":
        write_mrc(file.with_name("new.mrc"), voxels(9), voxel_size=10.0)
        os.utime(file.with_name("new.mrc"), ns=(before.st_atime_ns, before.st_mtime_ns))
        file.with_name("new.mrc").replace(file)
    else:
        with file.open("r+b") as stream:
            stream.seek(1024)
            stream.write(voxels(9).tobytes())
        if change == "same size and time":
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
            assert file.stat().st_mtime_ns == before.st_mtime_ns
    dataset = opened(items, cache)
    assert reads == ["1.mrc"]
    assert same(dataset, opened(items, None))


def test_other_settings_and_other_reading_code_make_other_parts(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    items, cache = write(tmp_path / "data", 2), tmp_path / "cache"
    for transform in (LOAD, Compose([LoadVolumed("image", nan="mean")]), LoadVolumed("image", permissive=True)):
        del reads[:]
        opened(items, cache, transform=Compose([transform]) if isinstance(transform, LoadVolumed) else transform)
        assert len(reads) == 2
    monkeypatch.setattr(volume_caches, "_readers", lambda: [b"another version"])
    del reads[:]
    opened(items, cache)
    assert len(reads) == 2
    assert len(parts(cache)) == 4


def test_arrays_and_transforms_that_do_more_are_not_kept(tmp_path: Path) -> None:
    items, cache = write(tmp_path / "data", 2), tmp_path / "cache"
    doubled = Compose([LoadVolumed("image"), Lambdad("image", lambda volume: 2 * volume)])
    assert torch.equal(opened(items, cache, transform=doubled)[1]["image"][0], 2 * torch.from_numpy(voxels(1)))
    arrays = [{"image": voxels(n), "path": f"{n}", "label": 0, "index": n} for n in range(2)]
    assert torch.equal(opened(arrays, cache)[1]["image"][0], torch.from_numpy(voxels(1)))
    assert not cache.exists()


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "one bit of the voxels": (".bin", flip_a_bit),
    "voxels cut off": (".bin", lambda file: file.write_bytes(file.read_bytes()[:-1])),
    "no voxels": (".bin", lambda file: file.write_bytes(b"")),
    "zeros, as after a power failure": (".bin", lambda file: file.write_bytes(bytes(file.stat().st_size))),
    "an empty list": (".json", lambda file: file.write_bytes(b"")),
    "a list cut off": (".json", lambda file: file.write_bytes(file.read_bytes()[:-9])),
    "text": (".json", lambda file: file.write_text("not JSON\n")),
    "another list": (".json", lambda file: file.write_text("[1, 2]")),
    "no checksums": (".json", lambda file: file.write_text(json.dumps(json.loads(file.read_text()) | {"crc32": []}))),
    "another shape": (".json", lambda file: file.write_text(file.read_text().replace("10, 12, 14", "14, 12, 10"))),
    "keys exchanged": (
        ".json",
        lambda file: file.write_text(json.dumps((n := json.loads(file.read_text())) | {"keys": n["keys"][::-1]})),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part_is_named_removed_and_made_again(
    tmp_path: Path, reads: list[str], caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    items, cache = write(tmp_path / "data", 3), tmp_path / "cache"
    opened(items, cache)
    suffix, harm = DAMAGES[damage]
    harm(parts(cache)[0].with_suffix(suffix))
    del reads[:]
    with caplog.at_level(logging.WARNING):
        assert same(opened(items, cache), opened(items, None))
    assert len(reads) == 6
    (record,) = caplog.records
    assert str(parts(cache)[0].with_suffix(".json")) in record.getMessage()
    assert "damaged" in record.getMessage()
    assert "\n" not in record.getMessage()
    del reads[:]
    opened(items, cache)
    assert reads == []


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("fault", ["a file in its place", "full while writing", "full at the end"])
def test_where_nothing_can_be_written_one_warning_says_so_and_the_data_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    count = 12 if fault == "full while writing" else 1
    items, cache = write(tmp_path / "data", count), tmp_path / "cache"
    if fault == "a file in its place":
        cache.write_text("")
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    else:
        limit = 2000  # of a buffered volume less than of several
    with caplog.at_level(logging.WARNING), file_size_limit(limit):
        dataset = opened(items, cache)
    assert same(dataset, opened(items, None))
    (record,) = caplog.records
    assert str(cache) in record.getMessage()
    assert "\n" not in record.getMessage()
    if cache.is_dir():
        assert [entry.name for entry in cache.iterdir()] == [volume_caches.LOCK]


def test_a_folder_that_may_only_be_read_is_used(
    tmp_path: Path, reads: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    items, cache = write(tmp_path / "data", 4), tmp_path / "cache"
    opened(items[:3], cache)

    def refuse(self: Path, *args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    del reads[:]
    monkeypatch.setattr(Path, "mkdir", refuse)  # root may write anywhere
    with caplog.at_level(logging.WARNING):
        opened(items[:3], cache)
        assert not caplog.records
        assert len(opened(items, cache)) == 4
    assert len(caplog.records) == 1
    assert reads == ["3.mrc"]


def test_the_folder_may_be_deleted_at_any_time(tmp_path: Path) -> None:
    items, cache = write(tmp_path / "data", 3), tmp_path / "cache"
    dataset = opened(items, cache)
    shutil.rmtree(cache)
    assert same(dataset, opened(items, None))
    assert same(opened(items, cache), dataset)
    parts(cache)[0].unlink()
    assert same(opened(items, cache), dataset)


def forked(act: Callable[[], None]) -> int:
    """Fork a process, which has what is imported here already; return its id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks in a process with threads
        child = os.fork()
    if child == 0:
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    return child


def test_processes_that_begin_together_read_the_same_and_write_one_part(tmp_path: Path) -> None:
    items, cache = write(tmp_path / "data", 60), tmp_path / "cache"
    begin = time.monotonic() + 0.3

    def act() -> None:
        time.sleep(max(0.0, begin - time.monotonic()))
        dataset = opened(items, cache)
        assert all(torch.equal(dataset[n]["image"][0], torch.from_numpy(voxels(n))) for n in range(60))

    children = [forked(act) for _ in range(3)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    assert len(parts(cache)) == 1
    assert not list(cache.glob("*.tmp"))


def test_a_process_waits_for_another_that_adds_and_then_reads_nothing(tmp_path: Path, reads: list[str]) -> None:
    items, cache = write(tmp_path / "data", 3), tmp_path / "cache"
    keys = [volume_key(item["image"]) for item in items]
    shared = VolumeCache(cache, LoadVolumed("image"))
    found: list[CachedVolumes] = []
    with shared.filled(keys) as add:
        other = threading.Thread(target=lambda: found.append(opened(items, cache)))
        other.start()
        for number, key in enumerate(keys):
            add(key, torch.from_numpy(voxels(number)[None]))
        other.join(0.3)
        assert other.is_alive()
    other.join(30)
    assert reads == []
    assert same(found[0], opened(items, None))


def test_nobody_waits_for_ever(tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume_caches, "PATIENCE", 0.1)
    items, cache = write(tmp_path / "data", 3), tmp_path / "cache"
    with VolumeCache(cache, LoadVolumed("image")).filled([volume_key(items[0]["image"])]):
        assert same(opened(items, cache), opened(items, None))
    assert len(reads) == 6
    assert not parts(cache)


def test_what_a_killed_process_left_is_neither_used_nor_in_the_way(tmp_path: Path) -> None:
    items, cache = write(tmp_path / "data", 3), tmp_path / "cache"

    def act() -> None:
        with VolumeCache(cache, LoadVolumed("image")).filled(["a", "b"]) as add:
            add("a", torch.linspace(0, 1, 32**3).reshape(1, 32, 32, 32))
            os.kill(os.getpid(), signal.SIGKILL)

    assert os.waitstatus_to_exitcode(os.waitpid(forked(act), 0)[1]) == -signal.SIGKILL
    assert len(list(cache.glob("*.tmp"))) == 1
    assert same(opened(items, cache), opened(items, None))
    assert not list(cache.glob("*.tmp"))
    assert len(parts(cache)) == 1


def test_headers_of_known_files_are_not_read_and_changed_ones_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = tmp_path / "data", tmp_path / "cache"
    folder.mkdir()
    items = [*write(folder / "a", 5), *write(folder / "b", 5, first=5)]
    plain = load_datalist(folder)
    assert load_datalist(folder, cache_dir=cache) == plain
    assert not cache.exists()
    opened(items, cache)
    checked: list[str] = []
    check = datalists.check_volume_file

    def noted(path: str, **options: Any) -> Any:
        checked.append(Path(path).name)
        return check(path, **options)

    monkeypatch.setattr(datalists, "check_volume_file", noted)
    assert load_datalist(folder, cache_dir=cache) == plain
    assert checked == []
    assert load_datalist(folder, cache_dir=cache, nan="mean") == plain
    assert len(checked) == 10  # made with other settings
    (folder / "a" / "3.mrc").write_bytes(b"")
    messages = []
    for place in (None, cache):
        with pytest.raises(DatasetError) as caught:
            load_datalist(folder, cache_dir=place)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "3.mrc: empty file" in messages[1]
