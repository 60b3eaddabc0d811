"""What each step records of its options: the names that old checkpoints have, and no others.

A run goes on where all of these are as they were, so a name that comes or goes would refuse every
older checkpoint, or take one that was trained otherwise; `resume.YOUNGER` says what holds for those
that came.
"""

import shlex

import pytest

import BornAgain
import DCM
import HSAKD
import Pruning
import Training
import Training_TransNet
import transClassifier
from utils import options
from utils.fit_options import FitOptions

IMAGES = "dataset name image_size sample_num sub_sampler_split augment normalisation batch_size"
RATES = "optim lr momentum weight_decay epochs logspace epoch_step decay_factor"
RESIZE = "resize"  # younger, as the next ones: `resume.YOUNGER`
CLASSIFIER = f"{IMAGES} {RESIZE} {RATES} seed amp tf32"
SHORT = "one_cycle label_smoothing"
HSAKD_RUN = (
    f"{IMAGES} lr weight_decay epochs seed amp tf32 command arch hold_out lr_type milestones"
    " nesterov select warmup_epoch"
)
FIT = (
    f"{RATES} sub_sampler_split batch_size hold_out fc channels_last seed amp tf32 layers hidden"
    " standardise solve match alpha L2 fix_p norm bn affine reverse initial_seed"
)
RECORDED = [
    (Training, "", f"{CLASSIFIER} {SHORT} arch train_layer fix_bn pretrained weights"),
    (BornAgain, "", f"{CLASSIFIER} {SHORT} arch tau lambd lambd_end"),
    (Pruning, "--resume N", f"{CLASSIFIER} arch s_conv s_fc share_bits share_lr"),
    (
        transClassifier,
        "--net_A A --net_B B --resume_Ys G",
        f"{CLASSIFIER} channels_last in_mode input tail",
    ),
    (
        DCM,
        "--save s",
        f"{IMAGES} {RESIZE} optim lr momentum weight_decay epochs epoch_step seed amp tf32 net1 net2 method"
        " batch_statistics keep_momentum lr_decay_ratio",
    ),
    (HSAKD, "baseline --arch resnet8", f"{HSAKD_RUN} sgdr_t"),
    (HSAKD, "teacher", f"{HSAKD_RUN} sgdr_t freezed pretrained_backbone"),
    (HSAKD, "student", f"{HSAKD_RUN} sgdr_t kd_T tarch tcheckpoint few_ratio"),
    (HSAKD, "online --arch WRN_40_2_WRN_40_2", f"{HSAKD_RUN} sgdr_t kd_T"),
    (HSAKD, "probe --s_path S", f"{HSAKD_RUN} s_path"),
]


@pytest.mark.parametrize(
    ("step", "line", "names"), RECORDED, ids=[f"{s.__name__} {line}" for s, line, _ in RECORDED]
)
def test_a_step_records_the_names_of_old_checkpoints(step, line, names):
    args = step.build_parser().parse_args(shlex.split(line))
    if step is HSAKD:
        args.augment = "zero4"  # as the data set has it, in place of an option
    assert set(options.settings(args)) == set(names.split())


@pytest.mark.parametrize(("words", "more"), [("", ""), ("--steps 5", "steps")])
def test_a_fit_records_the_names_of_old_checkpoints(words, more):
    args = Training_TransNet.build_parser().parse_args(words.split())
    fit = FitOptions.of(args)
    recorded = fit.settings(options.settings(args), fit.kinds[0], 32)
    assert set(recorded) == {*FIT.split(), *more.split()}
