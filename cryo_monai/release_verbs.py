"""Verbs that hand a trained network on, and take one in: package, trust."""

from __future__ import annotations


def package(
    run_dir: str,
    target: str,
    version: str = "1.0.0",
    title: str = "",
    authors: str = "",
    description: str = "",
    intended_use: str = "",
    data_source: str = "",
    data_license: str = "",
    weights_url: str = "",
) -> None:
    """Write a run as a MONAI bundle to pass on: recipe, weights, model card with what was measured, checksums.

    The test split is scored if it was not. The result is a folder, or a zip of it, that `monai.bundle`, MONAI Label and
    `cryo-monai classify` take; for the Hugging Face Hub: python -m monai.bundle push_to_hf_hub.

    Args:
        run_dir: the output_dir of a training.
        target: NAME.zip, or a folder NAME; NAME becomes the bundle's. MONAI Label wants "classification" in it.
        version: of the bundle, three numbers.
        title: of the model card.
        authors: who made the model.
        description: what the network does, in a sentence.
        intended_use: what it is for, and what not.
        data_source: where the training data are from.
        data_license: of the training data.
        weights_url: where models/model.pt will be downloadable; adds large_files.yml, as the MONAI model zoo wants.
    """
    from cryo_monai.packages import Release, package_run

    release = Release(
        version=version,
        title=title,
        authors=authors,
        description=description,
        intended_use=intended_use,
        data_source=data_source,
        data_license=data_license,
        weights_url=weights_url,
    )
    print(f"package: {package_run(run_dir, target, release)}")


def trust(package_dir: str) -> None:
    """Say that a package made elsewhere may be used, after checking that all its files are as they were packaged.

    The configuration of a bundle is a program, which runs when the bundle is used: trust people, not files.

    Args:
        package_dir: the unzipped folder.
    """
    from cryo_monai.trusts import trust as note

    note(package_dir)
    print(f"trusted: {package_dir}")
