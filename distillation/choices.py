"""What the options of DCM.py and HSAKD.py may be, in words that need no PyTorch.

`tests/unit/distillation/test_choices.py` holds the names against the networks themselves.
"""

# --method of DCM.py: `distillation.dcm`
METHODS = ("dcm", "dml", "alone")
# Networks that can have heads, in words: `models.small.names.TAKEN`
NETS = (
    "wrn_DEPTH_WIDTH, resnet8 to resnet110, resnet8x4, resnet32x4, ResNet50, vgg13_bn_32,"
    " mobilenet, mobilenetV2, ShuffleV1, ShuffleV2, resnet18_imagenet, resnet34_imagenet,"
    " resnet50_imagenet"
)
# Pairs of HSAKD.py online: `models.small.names.ONLINE_PAIRS`
PAIRS = tuple(
    f"{name}_{name}"
    for name in (
        "WRN_40_2",
        "WRN_40_1",
        "resnet56",
        "resnet32x4",
        "vgg13",
        "mbv2",
        "shufflev1",
        "shufflev2",
        "resnet18",
    )
)
