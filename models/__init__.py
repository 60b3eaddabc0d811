"""What computes features: classifiers, their halves at a layer, and the Trans-Net between them."""

from models.classifiers import build, load_classifier
from models.split import split
from models.trans_net import TransNet, load_trans_net

__all__ = ["TransNet", "build", "load_classifier", "load_trans_net", "split"]
