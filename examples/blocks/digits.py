"""The data of these examples: scikit-learn's 1797 handwritten digits of 8 x 8 pixels. They ship with it: no download."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor


def digits(held_out: int = 360) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images [n, 1, 8, 8] (mean 0, std 1) and labels [n] to train on, then those held out; always the same split."""
    raw = load_digits()
    images = torch.tensor(raw.images, dtype=torch.float32)[:, None]
    images = (images - images.mean()) / images.std()
    labels = torch.tensor(raw.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    return images[held_out:], labels[held_out:], images[:held_out], labels[:held_out]
