"""Networks with heads on their stages, for DCM and HSAKD.

A head of DCM has logits over N classes, one of HSAKD over N classes × 4 rotations. It repeats the
rest of its network behind its stage (`Description.rest_after`). DCM's authors change a few widths
and depths, which WRN and MobileNet describe.
"""

from torch import Tensor, nn

from models.small.names import bare_name, describe
from models.small.stages import Description, Initialiser, SmallNet, Stage, build_head, build_net
from utils.errors import InputError

ROTATIONS = 4


class NetWithHeads(nn.Module):
    """A bare network and the heads on its stages.

    Args:
        backbone: the network.
        heads: by the name of the stage whose output they take, from the shallowest on.
        method: whose heads they are, "dcm" or "hsakd".
    """

    def __init__(self, backbone: SmallNet, heads: dict[str, nn.Module], method: str) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)
        self.method = method

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Give the network's logits and those of its heads.

        Args:
            images: (M, 3, S, S).

        Returns:
            Logits, (M, N), and each head's logits, from the shallowest on.
        """
        feature, head_logits = images, []
        for name, stage in self.backbone.named_children():
            feature = stage(feature)
            if name in self.heads:
                head_logits.append(self.heads[name](feature))
        return feature, head_logits  # the last child gives the logits


def build_with_heads(
    arch: str, num_classes: int, method: str, *, heads: bool = True
) -> NetWithHeads:
    """Build a network with the heads of a method, initialised as its authors do, on the CPU.

    Args:
        arch: a name of `models.small.names`, with or without `_aux`.
        num_classes: N.
        method: "dcm": two heads, ep1 and ep2, of N logits each, on the first two attach points.
            "hsakd": a head of 4N logits on every attach point, aux1, aux2, …; class c and rotation
            r are at 4c + r.
        heads: False: the network is initialised as the method does, but has no heads.

    Returns:
        images (M, 3, S, S) → logits (M, N), [head logits, …].

    Raises:
        InputError: an unknown network or method, or a WRN that is too shallow for DCM's heads.
    """
    bare = bare_name(arch)
    description = describe(bare)
    stages = stages_of_heads(description, method)
    if heads and not all(stage.widths for rest in stages.values() for stage in rest):
        raise InputError(
            f"{arch} is too shallow for DCM: its first head has half of the"
            f" {len(description.stages[-1].widths)} block of the last group, which is none; take"
            " depth 16 or more"
        )
    # HSAKD's, unless DCM's authors begin otherwise.
    initialisers, head_initialisers = description.initialisers, description.head_initialisers
    if method == "dcm" and description.dcm_initialisers is not None:
        initialisers = head_initialisers = description.dcm_initialisers
    outputs = ROTATIONS * num_classes if method == "hsakd" else num_classes

    # The order of these calls fixes the random numbers of the initialisation.
    backbone = build_net(bare, description, num_classes)
    _initialise(backbone, initialisers)
    attached: dict[str, nn.Module] = {}
    for name, rest in stages.items() if heads else ():
        attached[name] = build_head(description, name, rest, outputs)
        _initialise(attached[name], head_initialisers)
    return NetWithHeads(backbone, attached, method)


def build_bare(arch: str, num_classes: int) -> SmallNet:
    """Build the bare network of a name, initialised as HSAKD's baselines are (MobileNet: as DCM's).

    Raises:
        InputError: an unknown name, or one with impossible numbers.
    """
    description = describe(arch)
    net = build_net(arch, description, num_classes)
    _initialise(net, description.initialisers)
    return net


def stages_of_heads(description: Description, method: str) -> dict[str, tuple[Stage, ...]]:
    """Give the stages of a method's heads, by attach point.

    They are the rest of the network, or DCM's variant of it.

    Raises:
        InputError: an unknown method.
    """
    if method == "hsakd":
        return {name: description.rest_after(name) for name in description.attach}
    if method == "dcm":
        # DCM's two heads are on the first two stages; HSAKD has one on every stage.
        points = description.attach[:2]
        return dict(zip(points, description.dcm_heads or map(description.rest_after, points)))
    raise InputError(f"the methods with heads are dcm and hsakd, not {method!r}")


def _initialise(module: nn.Module, initialisers: tuple[Initialiser, ...]) -> None:
    """Apply initialisers, one after the other, to a module and all inside it."""
    for initialise in initialisers:
        module.apply(initialise)
