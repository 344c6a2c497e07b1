"""Verbs that show what runs have learned: report, compare, explain."""

from __future__ import annotations

from cryo_monai.command_line import late_bar, split_list


def report(run_dir: str, output_dir: str = "", dataset_dir: str = "") -> None:
    """Write one page with everything about a run, to read and to pass on.

    Written are report.html (one file, needs no network), figures as SVG and PNG, and metrics.json. The test split is
    scored if it was not; training does all this at its end.

    Args:
        run_dir: the output_dir of a training.
        output_dir: folder of the report, report in run_dir by default.
        dataset_dir: where the data are now, if they were moved after training; kept in run.json.
    """
    from cryo_monai.reports import write_report
    from cryo_monai.runs import find_data_again, read_json

    if dataset_dir:
        find_data_again(run_dir, dataset_dir)
    with late_bar(desc="report", unit="step") as show:
        page = write_report(run_dir, output_dir or None, progress=show)
    for line in read_json(page.with_name("metrics.json"))["warnings"]:
        print(f"warning: {line}")
    print(f"report: {page}")


def compare(
    runs: str, output_dir: str = "comparison", names: str = "", projection: str = "tsne", seed: int = 0
) -> None:
    """Write one page that compares runs: curves, metrics with paired tests, features before and after training.

    Args:
        runs: comma-separated run folders, scored on the same test volumes.
        output_dir: folder of the comparison.
        names: comma-separated, what to call the runs; their folders' names by default.
        projection: of the features: tsne, umap or pca.
        seed: of the projection and of the cross-validation beside it.
    """
    from cryo_monai.reports import write_comparison

    with late_bar(desc="comparison", unit="step") as show:
        page = write_comparison(
            split_list(runs), output_dir, names=split_list(names), projection=projection, seed=seed, progress=show
        )
    print(f"comparison: {page}")


def explain(
    run_dir: str,
    data: str = "test",
    output_dir: str = "",
    method: str = "grad_cam",
    layer: str = "layer3",
    class_name: str = "",
    limit: int = 16,
    compare: str = "",
    against_start: bool = False,
    faithfulness: bool = True,
    voxel_size: float = 0.0,
    **ids: str,
) -> None:
    """Write what a run looks at: class activation maps on volumes, pictures, and how faithful the maps are.

    Maps have the format and grid of the volume (MRC, NIfTI) and open over it in ChimeraX and napari. An interrupted
    call is continued by the same call.

    Args:
        run_dir: the output_dir of a training.
        data: a volume, a folder, a datalist, or test for the run's test split (./test for a folder of that name).
        output_dir: folder of the maps, explanations in run_dir by default.
        method: grad_cam, grad_cam_pp or occlusion.
        layer: layer3 as in the paper, stage1 to stage4, or the name of any module of the backbone.
        class_name: class to explain; by default the predicted one.
        limit: most volumes, spread evenly over classes; 0 for all.
        compare: another run to show beside, such as one from random weights.
        against_start: show the network before training beside.
        faithfulness: measure deletion and insertion, for which networks run some 120 times per volume.
        voxel_size: of the maps in Å, where files do not say.
        ids: any id of the bundle's inference.json.
    """
    from cryo_monai.explanations import explain_run
    from cryo_monai.runs import read_json

    with late_bar(desc="explaining", unit="volume") as show:
        table = explain_run(
            run_dir,
            data,
            output_dir or None,
            method=method,
            layer=layer,
            class_name=class_name or None,
            limit=limit,
            compare=compare or None,
            against_start=against_start,
            faithfulness=faithfulness,
            voxel_size=voxel_size or None,
            progress=show,
            ids=ids,
        )
    orders = read_json(table.with_name("faithfulness.json"))["networks"]["run"]["orders"]
    for order, name in (("map", "maps"), ("centred_ball", "a ball in the middle")):
        found = orders.get(order, {}).get("advantage")
        if found is not None:
            interval = " [{:.2f}, {:.2f}]".format(*found["interval"]) if found["interval"] else ""
            print(f"advantage over a random order: {name} {found['mean']:.2f}{interval} ({found['count']} volumes)")
    print(f"explanations: {table}")
