"""What the trials of a sweep say together: statistics over seeds, paired comparisons, effort, tables."""
