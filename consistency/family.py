"""Trans-Nets that are fitted together: they read the same batches.

Each has its checkpoint and its log.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from models.trans_net import TransNet
from utils import checkpoint, runs
from utils.errors import InputError
from utils.provenance import Provenance
from utils.runtime import Runtime
from utils.training import resume
from utils.training.engine import Fit


class Family(nn.Module):
    """Trans-Nets that read the same features.

    Args:
        members: each maps x (N, C, H, W) to its reconstruction of the target (N, C', H', W').
        backwards: for each member, whether it maps the target to its reconstruction of x instead;
            None: none does.
    """

    def __init__(
        self, members: Sequence[TransNet], backwards: Sequence[bool] | None = None
    ) -> None:
        super().__init__()
        self.trans_nets = list(members)  # with their type, which a ModuleList forgets
        self.members = nn.ModuleList(members)
        self.backwards = list(backwards or [False] * len(members))

    def forward(self, x: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        """Give every member's reconstruction of what it does not read."""
        return tuple(
            member(target if back else x) for member, back in zip(self.members, self.backwards)
        )


@dataclass(frozen=True)
class Member:
    """One Trans-Net of a run.

    Attributes:
        trans_net: itself.
        path: where it is saved.
        settings: what is recorded of how it is fitted.
        alpha: the weights of p(1) … p(K) in the loss, (K,).
        resumed: the checkpoint that it goes on from.
        state: what that holds, or nothing.
        reverse: it reconstructs A's features from B's.
        source: what it reads and reconstructs, as its own direction calls them.
        images: what is recorded of the images that it is fitted on: "train" →
            `Contents.to_record()`.
        title: names it on the terminal.
    """

    trans_net: TransNet
    path: Path
    settings: dict[str, Any]
    alpha: Tensor
    resumed: Path | None
    state: checkpoint.State
    reverse: bool
    source: Provenance
    images: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""

    @property
    def name(self) -> str:
        """Name it as its file is called."""
        return runs.stem(self.path)

    def log(
        self, out: str, epochs: int, start_epoch: int, runtime: Runtime, **facts: Any
    ) -> runs.RunLog:
        """Make its log, in each line of whose file `facts` stand too."""
        folder = runs.log_folder(out, self.path.parent.name, self.name)
        return runs.RunLog(
            folder,
            epochs,
            start_epoch=start_epoch,
            active=runtime.is_main,
            facts=facts,
            title=self.title,
            writes=[self.path],
        )

    def restore(self, fit: Fit) -> int:
        """Put its share of the optimiser where its checkpoint has it.

        It gives the number of epochs that were trained.
        """
        if self.resumed is None:
            return 0
        # Both optimisers have these parameters: the state moves into the family's by parameter.
        member = part_of(fit, self.trans_net)
        epoch = member.restore(self.state, self.resumed)
        fit.optimizer.state.update(member.optimizer.state)
        return epoch

    def to_save(self, fit: Fit, epoch: int, **facts: Any) -> checkpoint.State:
        """Give what its checkpoint holds: itself, its share of the optimiser, and `facts`."""
        return part_of(fit, self.trans_net).state(
            epoch,
            trans_net=self.trans_net.config,
            settings=self.settings,
            arch=self.source.arch,
            source=self.source.to_record(),
            images=dict(self.images),
            history=resume.history(self.state, self.settings),
            versions=resume.VERSIONS,
            **facts,
        )

    def copy_of(self, epoch: int | str) -> Path:
        """Name the copy that is kept of an epoch."""
        return self.path.with_name(f"checkpoint_{self.name}_epoch{epoch}.pth.tar")


def save(
    members: Sequence[Member],
    fit: Fit,
    epoch: int,
    facts: Sequence[Mapping[str, Any]],
    *,
    keep: int = 1,
    copies: bool = False,
) -> None:
    """Save all members, once for all processes: after a crash all are of this epoch, or none is.

    Args:
        members: that are fitted together.
        fit: of the family.
        epoch: how many were trained.
        facts: for each what its checkpoint says besides.
        keep: how many states of each are kept; see `utils.files.earlier`.
        copies: save a copy of each too, named by the epoch.
    """
    if not fit.runtime.is_main:
        return
    states = {
        member.path: member.to_save(fit, epoch, **of_member)
        for member, of_member in zip(members, facts)
    }
    # The same state under two names: the copy of this epoch, and the one to go on from.
    beside = {member.copy_of(epoch): states[member.path] for member in members if copies}
    checkpoint.save_together(states, keep=keep, beside=beside)


def restore(members: Sequence[Member], fit: Fit) -> int:
    """Put every member where its checkpoint left it, all at one epoch; give how many were trained.

    Raises:
        InputError: they were left within an epoch that others took part in, whose sums are of all.
    """
    # All at one epoch: a second one in the set could not be unpacked.
    (epoch,) = {member.restore(fit) for member in members}
    first = members[0]
    midway = first.state.get("midway") if first.resumed == first.path else None
    if midway:
        if midway["members"] != [member.path.name for member in members]:
            raise InputError(
                f"{first.path} was left within epoch {epoch + 1}, together with"
                f" {', '.join(midway['members'])}; go on with all of them by the same command, or"
                " --restart"
            )
        fit.midway.record = midway
        fit.runtime.say(f"going on in epoch {epoch + 1}, after {midway['step']} of its steps")
    return epoch


def of_member(metrics: Mapping[str, float], number: int) -> dict[str, float]:
    """Give what an epoch measured of one member, under the plain names.

    "0.MSE" of member 0 is its "MSE".
    """
    split = {tuple(name.split(".", 1)): value for name, value in metrics.items() if "." in name}
    return {name: value for (member, name), value in split.items() if member == str(number)}


def part_of(fit: Fit, member: nn.Module) -> Fit:
    """Give a member's share of a family's fit, as a fit by itself.

    It has the same weights and the same optimiser state.
    """
    options = {
        name: value for name, value in fit.optimizer.param_groups[0].items() if name != "params"
    }
    # State is kept by parameter, so a member's is a selection of the family's.
    trained = [parameter for parameter in member.parameters() if parameter.requires_grad]
    optimizer = type(fit.optimizer)([{**options, "params": trained}])  # type: ignore[call-arg]
    optimizer.state.update({p: fit.optimizer.state[p] for p in trained if p in fit.optimizer.state})
    return replace(fit, net=member, model=member, optimizer=optimizer)
