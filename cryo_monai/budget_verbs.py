"""Verb that plans labelling: budget."""

from __future__ import annotations

from cryo_monai.command_line import UsageError, split_list


def budget(
    results: str,
    target: float = 0.9,
    output_dir: str = "",
    metric: str = "accuracy",
    labels: str = "",
    compare: str = "initialisation",
    baseline: str = "random",
    groups: str = "",
    seed: int = 0,
) -> None:
    """Say how many labels reach a target score, and how many times fewer one initialisation needs than another.

    A learning curve is fitted to the trials of a sweep, or to any CSV with num_train and accuracy (and, if known,
    num_test, num_classes and seed). Written are budget.html, to read and to pass on, budget.json and budget.csv.

    Args:
        results: the output_dir of a sweep, its results.csv, or a CSV.
        target: score to reach, such as 0.9.
        output_dir: folder of what is written; by default that of the results.
        metric: accuracy, balanced_accuracy, macro_f1 or auc.
        labels: comma-separated numbers of labels whose score is to be foretold, such as 500,1000.
        compare: axis, or column, whose values are compared.
        baseline: the value of it that the others are compared with.
        groups: comma-separated columns that tell the curves apart; by default the axes of the sweep, or all columns
            that a sweep does not have.
        seed: of the draws from the fitted curves.
    """
    from pathlib import Path

    from cryo_monai.budgets.answers import budget_lines, write_budget
    from cryo_monai.budgets.planning import plan_budget
    from cryo_monai.budgets.results import find_results
    from cryo_monai.reports.budget_pages import write_budget_page

    try:
        numbers = [float(part) for part in split_list(labels)]
    except ValueError:
        raise UsageError(f"--labels {labels}: give numbers, separated by commas") from None
    found = plan_budget(
        results,
        target=target,
        metric=metric,
        labels=numbers,
        compare=compare,
        baseline=baseline,
        groups=split_list(groups),
        seed=seed,
    )
    folder = Path(output_dir) if output_dir else find_results(results).parent
    write_budget(found, folder)
    page = write_budget_page(found, folder)
    print("\n".join(budget_lines(found)))
    print(f"budget: {page}")
