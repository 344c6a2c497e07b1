"""Searches for hyper-parameters: proposals of Optuna, trained as trials, stopped early, resumed like any sweep."""
