"""How many labels a target takes: learning curves of the results of a sweep, with their uncertainty."""
