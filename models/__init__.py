"""What computes features: classifiers, their halves at a layer,
the Trans-Net between them, and heads that distil.
"""

from models.classifiers import build, load_classifier
from models.small.author_keys import load_authors_state
from models.small.auxiliary import build_with_heads
from models.split import split
from models.trans_net import TransNet, load_trans_net

__all__ = [
    "TransNet",
    "build",
    "build_with_heads",
    "load_authors_state",
    "load_classifier",
    "load_trans_net",
    "split",
]
