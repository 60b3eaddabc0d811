"""The options of a step, parsed."""

from utils import options
from utils.parser import Parser


def parsed(*words):
    parser = Parser("A step.")
    options.add_data_options(parser, batch_size=10, two_nets=True)
    options.add_training_options(parser, optim="SGD", lr=0.5, epochs=3, logspace=2)
    options.add_resume_options(parser)
    options.add_run_options(parser)
    return parser.parse_args([*words, "-j", "0"])
