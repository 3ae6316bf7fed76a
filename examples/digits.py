"""The digits of scikit-learn as a small long-tailed set for the examples: 8x8 images that come with the library."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset


def long_tailed_digits(largest: int = 150, smallest: int = 15) -> tuple[TensorDataset, np.ndarray]:
    """Images (3, 8, 8) with labels whose counts fall geometrically from ``largest`` to ``smallest``; and the labels."""
    images, labels = load_digits(return_X_y=True)
    counts = np.geomspace(largest, smallest, 10).round().astype(int)
    chosen = np.concatenate([np.flatnonzero(labels == k)[:n] for k, n in enumerate(counts)])
    pixels = torch.tensor(images[chosen] / 16, dtype=torch.float32).view(-1, 1, 8, 8).expand(-1, 3, -1, -1).contiguous()
    return TensorDataset(pixels, torch.tensor(labels[chosen])), labels[chosen]
