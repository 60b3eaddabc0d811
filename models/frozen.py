"""The fast form of a network that is only asked: BatchNorm folded, laid out for its device, without gradients."""

import copy
from collections import Counter

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.graph import trace


def freeze_for_inference(module: nn.Module, device: torch.device) -> fx.GraphModule:
    """Make a network that computes what `module` computes in evaluation mode, faster.

    A BatchNorm that alone reads a convolution is part of that convolution's weights:

        γ (W ∗ x + b − μ) / √(σ² + ε) + β = W′ ∗ x + b′,   W′ = γ W / √(σ² + ε),   b′ = β + γ (b − μ) / √(σ² + ε)

    So results differ by rounding, about 1e-6 of the largest. The weights are in `channels_last` order, in which
    convolutions are faster and which they give to whatever images come; what is returned is contiguous again, as a
    Trans-Net, a feature cache and other code's views want it.

    The module is left as it is, and only what its result needs is held: no tail by a head. Weights that need no change
    (on the same device those of linear layers) are shared and not copied; where the module is trained further, freeze
    it anew.

    Args:
        module: a classifier, or a head, a tail or both of `models.split`; gives one tensor or a tuple of tensors.
        device: where the result computes.

    Returns:
        The network, in evaluation mode, no parameter of which has a gradient.
    """
    shared = {id(weight): nn.Parameter(weight.detach(), requires_grad=False) for weight in module.parameters()}
    buffers = {id(buffer): buffer.detach() for buffer in module.buffers()}
    own = copy.deepcopy(module, {**shared, **buffers})
    frozen = fx.GraphModule(own, trace(own)[0], "Frozen").eval()
    _fold_batch_norms(frozen)
    _return_contiguous(frozen.graph)
    frozen.recompile()
    return frozen.to(memory_format=torch.channels_last).to(device)


def _fold_batch_norms(net: fx.GraphModule) -> None:
    """Replace each convolution that only a BatchNorm reads by one that does the work of both, in place."""
    calls = Counter(node.target for node in net.graph.nodes)
    for node in list(net.graph.nodes):
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or not node.op == source.op == "call_module":
            continue
        conv, norm = net.get_submodule(str(source.target)), net.get_submodule(node.target)
        if type(conv) is not nn.Conv2d or not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None:
            continue
        # Others may read the convolution's own output, or a second call use its weights.
        if len(source.users) == 1 and calls[source.target] == 1:
            net.set_submodule(str(source.target), fuse_conv_bn_eval(conv, norm))
            node.replace_all_uses_with(source)
            net.graph.erase_node(node)
    net.delete_all_unused_submodules()


def _return_contiguous(graph: fx.Graph) -> None:
    """Let a graph return its tensors in PyTorch's ordinary memory order."""
    output = graph.output_node()
    with graph.inserting_before(output):
        output.args = fx.map_arg(output.args, lambda node: graph.call_method("contiguous", (node,)))
