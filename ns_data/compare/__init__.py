"""Compare: many runs of `train.py`, and what their folders say: tables, significance, plots, a report."""
