"""Training: configuration, data, optimisers and schedules, evaluation, checkpoints and run folders for ``train.py``."""
