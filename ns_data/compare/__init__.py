"""Comparing: starts ``train.py`` runs, and reads run folders into tables, statistics and plots."""
