"""Volumes in other formats are the same volumes."""

import gzip
import itertools
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cryo_monai import LoadVolumed
from cryo_monai.__main__ import main
from cryo_monai.conversions import (
    StoredVolume,
    convert_tree,
    convert_volume,
    read_stored_volume,
    write_stored_volume,
)
from cryo_monai.errors import DatasetError, InputError
from cryo_monai.mrc import read_mrc, write_mrc
from cryo_monai.volumes import read_volume

SHAPE = (10, 12, 14)
SIZES = (5.0, 7.5, 10.25)
ORIGIN = (25.0, -50.0, 100.0)
SUFFIXES = (".mrc", ".nii", ".nii.gz", ".npy")
BOTH = ("int8", "int16", "uint16", "float32")
quick = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def made(dtype: str = "float32") -> np.ndarray:
    values = np.random.default_rng(0).normal(0, 30, SHAPE)
    return np.abs(values).astype(dtype) if np.dtype(dtype).kind == "u" else values.astype(dtype)


def loaded(path: Path) -> np.ndarray:
    return LoadVolumed("image")({"image": str(path)})["image"].numpy()[0]


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("way", [".nii", ".nii.gz"])
def test_mrc_to_nifti_and_back_keeps_every_bit_and_all_geometry(dtype: str, way: str, tmp_path: Path) -> None:
    data = made(dtype)
    write_mrc(tmp_path / "a.mrc", data, voxel_size=SIZES, origin=ORIGIN)
    assert convert_volume(tmp_path / "a.mrc", tmp_path / f"b{way}") == ()
    assert convert_volume(tmp_path / f"b{way}", tmp_path / "c.mrc") == ()
    back = read_stored_volume(tmp_path / "c.mrc")
    assert back.data.dtype == data.dtype
    assert back.data.tobytes() == data.tobytes()
    assert back.voxel_size == pytest.approx(SIZES, rel=1e-7)
    assert back.origin == ORIGIN
    first, second = (tmp_path / "a.mrc").read_bytes(), (tmp_path / "c.mrc").read_bytes()
    assert first[:220] == second[:220]  # all of the header but the label
    assert first[1024:] == second[1024:]


@quick
@given(
    data=hnp.arrays(
        st.sampled_from([np.dtype(name) for name in BOTH]),
        SHAPE,
        elements=None,
        fill=st.nothing(),
    ),
    sizes=st.tuples(*[st.floats(0.125, 500, width=32)] * 3).filter(lambda s: not np.allclose(s, 1)),
    origin=st.tuples(*[st.floats(-1e4, 1e4, width=32)] * 3),
)
def test_any_volume_comes_back(
    data: np.ndarray,
    sizes: tuple[float, float, float],
    origin: tuple[float, float, float],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    write_stored_volume(folder / "a.mrc", StoredVolume(data, sizes, origin))
    for before, after in itertools.pairwise(("a.mrc", "b.nii.gz", "c.mrc", "d.nii")):
        convert_volume(folder / before, folder / after)
    for name in ("a.mrc", "b.nii.gz", "c.mrc", "d.nii"):
        stored = read_stored_volume(folder / name)
        assert stored.data.tobytes() == data.tobytes()  # NaN, infinities, -0.0 included
        assert np.allclose(stored.voxel_size, sizes, rtol=3e-7, atol=0)
        assert stored.origin == origin


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_our_readers_see_the_same_array_in_every_format(suffix: str, tmp_path: Path) -> None:
    data = made()
    write_mrc(tmp_path / "a.mrc", data, voxel_size=SIZES, origin=ORIGIN)
    if suffix != ".mrc":
        convert_volume(tmp_path / "a.mrc", tmp_path / f"a{suffix}")
    assert np.array_equal(read_volume(tmp_path / f"a{suffix}"), data)
    assert np.array_equal(loaded(tmp_path / f"a{suffix}"), data)


def test_nifti_says_where_voxels_are_in_angstroms_of_unknown_unit(tmp_path: Path) -> None:
    data = made()
    write_mrc(tmp_path / "a.mrc", data, voxel_size=SIZES, origin=ORIGIN)
    convert_volume(tmp_path / "a.mrc", tmp_path / "a.nii.gz")
    image = nibabel.load(tmp_path / "a.nii.gz")
    assert image.shape == SHAPE[::-1]
    assert np.array_equal(image.affine @ [0, 0, 0, 1], [100, -50, 25, 1])
    assert np.array_equal(image.affine @ [1, 2, 3, 1] - image.affine @ [0, 0, 0, 1], [10.25, 15, 15, 0])
    assert image.header.get_xyzt_units()[0] == "unknown"
    # Programs that go by the quaternion see the same.
    assert np.allclose(image.header.get_qform(), image.affine)
    assert image.dataobj[3, 2, 1] == data[1, 2, 3]


def test_the_same_volume_gives_the_same_bytes(tmp_path: Path) -> None:
    write_mrc(tmp_path / "a.mrc", made(), voxel_size=SIZES)
    for name in ("one.nii.gz", "two.nii.gz"):
        convert_volume(tmp_path / "a.mrc", tmp_path / name)
    assert (tmp_path / "one.nii.gz").read_bytes() == (tmp_path / "two.nii.gz").read_bytes()


@pytest.mark.parametrize(
    ("dtype", "suffix", "becomes", "note"),
    [
        ("float16", ".nii.gz", "float32", "exactly"),
        ("bool", ".mrc", "int8", "exactly"),
        ("uint8", ".mrc", "int16", "exactly"),
        ("int64", ".mrc", "int16", "exactly"),
        ("float64", ".mrc", "float32", "rounded"),
        ("bool", ".nii", "uint8", "exactly"),
    ],
)
def test_a_type_that_a_format_has_not_becomes_one_that_holds_it(
    dtype: str, suffix: str, becomes: str, note: str, tmp_path: Path
) -> None:
    data = made("float64").astype(dtype)
    np.save(tmp_path / "a.npy", data)
    notes = convert_volume(tmp_path / "a.npy", tmp_path / f"a{suffix}", voxel_size=4.0)
    assert any(note in text and dtype in text for text in notes)
    stored = read_stored_volume(tmp_path / f"a{suffix}")
    assert stored.data.dtype == becomes
    assert np.array_equal(stored.data, data.astype(becomes))
    assert np.array_equal(read_volume(tmp_path / "a.npy"), read_volume(tmp_path / f"a{suffix}"))


def test_whole_numbers_too_large_for_mrc_are_said_to_be_rounded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full(SHAPE, 2**24 + 1, np.int32))
    assert convert_volume(tmp_path / "a.npy", tmp_path / "a.mrc", voxel_size=4.0) == ("int32 was rounded to float32",)


EDGES = {
    "uint32": [0, 2**15, 2**24 + 1, 2**31, 2**32 - 1],
    "int32": [-(2**31), -(2**24) - 1, 2**24 + 1, 2**31 - 1],
    "uint64": [0, 2**24 + 1, 2**63, 2**64 - 2**15, 2**64 - 1],
    "int64": [-(2**63), -(2**53) - 1, 2**31, 2**32 + 5, 2**63 - 1],
}


@pytest.mark.parametrize(("dtype", "number"), [(dtype, one) for dtype, many in EDGES.items() for one in many])
def test_exactly_is_said_of_whole_numbers_that_are_the_same_afterwards(dtype: str, number: int, tmp_path: Path) -> None:
    data = np.zeros(SHAPE, dtype)
    data[1, 2, 3] = number
    np.save(tmp_path / "a.npy", data)
    (note,) = convert_volume(tmp_path / "a.npy", tmp_path / "a.mrc", voxel_size=4.0)
    stored = read_stored_volume(tmp_path / "a.mrc").data
    got = int(stored[1, 2, 3])  # Python's: no type wraps it
    assert ("exactly" in note) == (got == number) == (int(np.float32(number)) == number)
    assert abs(got - number) <= abs(number) * 2**-24
    assert np.count_nonzero(stored) == bool(number)


@pytest.mark.parametrize("suffix", [".mrc", ".nii.gz"])
def test_numbers_are_never_made_infinite(suffix: str, tmp_path: Path) -> None:
    data = made("float64")
    data[0, 0, 0] = np.inf  # which float32 has
    dtype = "float64" if suffix == ".mrc" else np.longdouble
    np.save(tmp_path / "a.npy", data.astype(dtype))
    convert_volume(tmp_path / "a.npy", tmp_path / f"a{suffix}", voxel_size=4.0)
    assert np.isinf(read_stored_volume(tmp_path / f"a{suffix}").data).sum() == 1
    large = data.astype(dtype)
    large[1, 2, 3] = most = 1e300 if suffix == ".mrc" else np.finfo(np.longdouble).max
    if suffix != ".mrc" and not most > np.finfo(np.float64).max:
        pytest.skip("here long double is double")
    np.save(tmp_path / "large.npy", large)
    with pytest.raises(InputError, match=rf"large\{suffix}: 1 voxels are beyond .* float"):
        convert_volume(tmp_path / "large.npy", tmp_path / f"large{suffix}", voxel_size=4.0)
    assert not (tmp_path / f"large{suffix}").exists()


def test_slopes_of_nifti_make_no_number_infinite(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.full(SHAPE[::-1], 1e30), np.diag([4.0, 4.0, 4.0, 1.0]))
    image.header.set_slope_inter(1e20, 0.0)
    image.to_filename(tmp_path / "slope.nii")
    with pytest.raises(InputError, match=r"slope\.nii: 1680 voxels are beyond"):
        convert_volume(tmp_path / "slope.nii", tmp_path / "slope.mrc")


def test_affines_of_other_programs(tmp_path: Path) -> None:
    data = made()
    mirrored = nibabel.Nifti1Image(data.T, np.diag([-4.0, 5.0, 6.0, 1.0]))
    mirrored.header.set_xyzt_units("mm")  # as programs built on ITK write it
    mirrored.to_filename(tmp_path / "lps.nii.gz")
    notes = convert_volume(tmp_path / "lps.nii.gz", tmp_path / "lps.mrc")
    assert any("mirror image" in note for note in notes)
    assert any("called mm" in note for note in notes)
    assert read_mrc(tmp_path / "lps.mrc").voxel_size == (6.0, 5.0, 4.0)
    assert np.array_equal(read_mrc(tmp_path / "lps.mrc").data, data)
    microscope = nibabel.Nifti1Image(data.T, np.diag([0.001, 0.001, 0.001, 1.0]))
    microscope.header.set_xyzt_units("micron")
    microscope.to_filename(tmp_path / "um.nii")
    convert_volume(tmp_path / "um.nii", tmp_path / "um.mrc")
    assert read_mrc(tmp_path / "um.mrc").voxel_size == pytest.approx((10.0, 10.0, 10.0))
    scaled = nibabel.Nifti1Image(made("int16").T, np.diag([4.0, 4.0, 4.0, 1.0]))
    scaled.header.set_slope_inter(0.5, 3.0)
    scaled.to_filename(tmp_path / "slope.nii")
    notes = convert_volume(tmp_path / "slope.nii", tmp_path / "slope.mrc")
    assert any("slope" in note for note in notes)
    assert np.array_equal(read_volume(tmp_path / "slope.nii"), read_volume(tmp_path / "slope.mrc"))


def test_what_cannot_be_converted_is_one_line(tmp_path: Path) -> None:
    data = made()
    np.save(tmp_path / "a.npy", data)
    np.save(tmp_path / "c.npy", data.astype(np.complex64))
    np.save(tmp_path / "flat.npy", data[:1])
    write_mrc(tmp_path / "b.mrc", data, voxel_size=4.0)
    (tmp_path / "there.nii").write_bytes(b"mine")
    cases = [
        ("a.npy", "x.mrc", None, "voxel size is not known"),
        ("a.npy", "x.tif", 4.0, "can be written as"),
        ("a.npy", "x.mrc", -1.0, "must be one number above 0"),
        ("c.npy", "x.mrc", 4.0, "not a real number"),
        ("flat.npy", "x.mrc", 4.0, "would be a picture"),
        ("b.mrc", "x.mrc", None, "has the format of"),
        ("b.mrc", "there.nii", None, "exists"),
        ("gone.mrc", "x.nii", None, "no such file"),
        ("there.nii", "x.mrc", None, "there.nii"),
        ("gone.tif", "x.mrc", None, "unknown extension"),
    ]
    for source, target, size, message in cases:
        with pytest.raises(InputError, match=message):
            convert_volume(tmp_path / source, tmp_path / target, voxel_size=size)
        assert not (tmp_path / target).exists() or target == "there.nii"
    assert (tmp_path / "there.nii").read_bytes() == b"mine"


def tree(root: Path) -> Path:
    for number, name in enumerate(("a/1.mrc", "a/2.map", "b/c/3.mrc")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_mrc(root / name, made() + number, voxel_size=SIZES)
    (root / "notes.txt").write_text("not a volume")
    return root


def test_a_folder_keeps_its_sub_folders_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    root, out = tree(tmp_path / "particles"), tmp_path / "nifti"
    done = convert_tree(root, out, to="nii.gz")
    assert (done.converted, done.present) == (3, 0)
    for name in ("a/1", "a/2", "b/c/3"):
        source = next(root.glob(f"{name}.m*"))
        assert np.array_equal(read_volume(out / f"{name}.nii.gz"), read_volume(source))
    before = (out / "a/1.nii.gz").stat().st_mtime_ns
    (out / "b/c/3.nii.gz").unlink()
    write_mrc(root / "a/2.map", made() + 7, voxel_size=SIZES)  # changed since
    done = convert_tree(root, out, to="nii.gz")
    assert (done.converted, done.present) == (2, 1)
    assert (out / "a/1.nii.gz").stat().st_mtime_ns == before
    assert np.array_equal(read_volume(out / "a/2.nii.gz"), made() + 7)
    with pytest.raises(InputError, match="other settings"):
        convert_tree(root, out, to="nii.gz", voxel_size=3.0)
    back = convert_tree(out, tmp_path / "back", to="mrc")
    assert back.converted == 3
    assert (tmp_path / "back/b/c/3.mrc").read_bytes()[1024:] == (root / "b/c/3.mrc").read_bytes()[1024:]


def test_a_folder_never_writes_over_what_it_did_not_write(tmp_path: Path) -> None:
    root, out = tree(tmp_path / "particles"), tmp_path / "nifti"
    convert_tree(root, out, to="nii")
    write_mrc(root / "a/9.mrc", made(), voxel_size=SIZES)
    (out / "a/9.nii").write_bytes(b"mine")
    with pytest.raises(DatasetError, match="was not made by this conversion"):
        convert_tree(root, out, to="nii")
    assert (out / "a/9.nii").read_bytes() == b"mine"
    other = tmp_path / "full"
    other.mkdir()
    (other / "x").write_text("")
    with pytest.raises(InputError, match="not empty"):
        convert_tree(root, other, to="nii")
    with pytest.raises(InputError, match="lies inside"):
        convert_tree(root, root / "out", to="nii")


def test_what_was_made_of_an_earlier_source_never_passes_for_the_present_one(tmp_path: Path) -> None:
    root, out = tree(tmp_path / "particles"), tmp_path / "nifti"
    convert_tree(root, out, to="nii.gz")
    for name in ("a/1.mrc", "b/c/3.mrc"):
        write_mrc(root / name, made() + 7, voxel_size=SIZES)

    def interrupt(done: int, todo: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_tree(root, out, to="nii.gz", progress=interrupt)
    done = convert_tree(root, out, to="nii.gz")
    assert (done.converted, done.present) == (1, 2)
    for name in ("a/1", "b/c/3"):
        assert np.array_equal(read_volume(out / f"{name}.nii.gz"), made() + 7)


def test_a_changed_source_that_cannot_be_read_is_an_error_every_time(tmp_path: Path) -> None:
    root, out = tree(tmp_path / "particles"), tmp_path / "nifti"
    whole = gzip.compress((root / "a/1.mrc").read_bytes())
    (root / "z.mrc.gz").write_bytes(whole)
    assert convert_tree(root, out, to="nii.gz").converted == 4
    (root / "z.mrc.gz").write_bytes(whole[: len(whole) // 2])
    for _ in range(2):
        with pytest.raises(DatasetError, match=r"z\.mrc\.gz"):
            convert_tree(root, out, to="nii.gz")
    (root / "z.mrc.gz").write_bytes(whole)
    done = convert_tree(root, out, to="nii.gz")
    assert (done.converted, done.present) == (1, 3)


def test_every_bad_file_of_a_folder_is_named(tmp_path: Path) -> None:
    root, out = tree(tmp_path / "particles"), tmp_path / "nifti"
    (root / "a/bad.mrc").write_bytes(b"no")
    write_mrc(root / "a/unknown.mrc", made(), voxel_size=1.0)
    write_mrc(root / "a/1.rec", made(), voxel_size=2.0)  # would become 1.nii.gz too
    with pytest.raises(DatasetError) as caught:
        convert_tree(root, out, to="nii.gz")
    assert len(caught.value.problems) == 3
    assert all(name in str(caught.value) for name in ("bad.mrc", "unknown.mrc", "1.rec"))
    assert not out.exists()
    for name in ("a/bad.mrc", "a/unknown.mrc", "a/1.rec"):
        (root / name).unlink()
    # A right header, and voxels that end too early: found when they are read, and the others are converted.
    whole = gzip.compress((root / "a/1.mrc").read_bytes())
    (root / "z.mrc.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match=r"z\.mrc\.gz"):
        convert_tree(root, out, to="nii.gz")
    assert len(list(out.rglob("*.nii.gz"))) == 3
    assert not list(out.rglob("*.tmp"))


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tree(tmp_path / "particles")
    assert main(["convert", "particles/a/1.mrc", "1.nii.gz", "--voxel_size", "2,3,4"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "converted: 1.nii.gz\n"
    assert "note: its header says voxels of 5 x 7.5 x 10.25 Å" in printed.err
    assert nibabel.load("1.nii.gz").header.get_zooms() == (4.0, 3.0, 2.0)
    assert main(["convert", "particles", "nifti", "--to", "nii.gz"]) == 0
    assert "converted: 3 volumes: nifti" in capsys.readouterr().out
    assert json.loads((tmp_path / "nifti" / "conversion.json").read_text())["to"] == "nii.gz"
    for arguments in (
        ["convert", "particles", "x"],
        ["convert", "1.nii.gz", "x.mrc", "--to", "mrc"],
        ["convert", "1.nii.gz", "x.mrc", "--voxel_size", "1,2"],
    ):
        assert main(arguments) == 2
        assert capsys.readouterr().err.count("error: ") == 1


GOOD = [
    "anisotropic_voxel.mrc",
    "bz2.mrc.bz2",
    "exthdr_seri.mrc",
    "gz.mrc.gz",
    "mode0_int8.mrc",
    "mode12_f16.mrc",
    "mode1_int16.mrc",
    "mode1_int16_bigendian.mrc",
    "mode2_f32.mrc",
    "mode2_f32_bigendian.mrc",
    "mode6_u16.mrc",
    "nan_inf.mrc",
    "nxstart_only.mrc",
    "origin_and_nxstart_conflict.mrc",
    "origin_only.mrc",
    "permuted_mapcrs_321.mrc",
    "000002@volstack_ispg401.mrcs",
]


@pytest.mark.parametrize("name", GOOD)
def test_real_files_are_the_same_as_nifti(name: str, shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "mrc" / name
    convert_volume(source, tmp_path / "a.nii.gz")
    assert np.array_equal(read_volume(tmp_path / "a.nii.gz"), read_volume(source), equal_nan=True)
    convert_volume(tmp_path / "a.nii.gz", tmp_path / "back.mrc")
    before, after = read_stored_volume(source), read_stored_volume(tmp_path / "back.mrc")
    expected = "float32" if before.data.dtype == "float16" else before.data.dtype
    assert after.data.tobytes() == before.data.astype(expected).tobytes()
    assert after.voxel_size == pytest.approx(before.voxel_size, rel=3e-7)
    assert after.origin == pytest.approx(before.origin, rel=1e-6)


def test_real_bad_files_are_all_named(shared_data: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        convert_tree(shared_data / "mrc", tmp_path / "out", to="nii.gz")
    named = {Path(problem.split(": ")[0]).name for problem in caught.value.problems}
    bad = {path.name for path in (shared_data / "mrc").iterdir() if path.name.startswith("bad_")}
    others = {"empty.mrc", "not_mrc.mrc", "mode4_c64.mrc", "single_image_2d.mrc", "volstack_ispg401.mrcs"}
    assert named == bad | others | {"zero_voxel.mrc"}
    assert not (tmp_path / "out").exists()
