"""Frozen networks: a fast form with BatchNorms folded into convolutions, and a plain form."""

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.classifiers import FixedBatchNorm2d
from models.graph import trace


def freeze_for_inference(module: nn.Module, device: torch.device) -> fx.GraphModule:
    """Make the fast frozen form of a network: it computes the same as in evaluation mode.

    A BatchNorm that alone reads a convolution becomes part of that convolution's weights:

        γ (W ∗ x + b − μ) / √(σ² + ε) + β = W′ ∗ x + b′
        W′ = γ W / √(σ² + ε),   b′ = β + γ (b − μ) / √(σ² + ε)

    Results differ by rounding, about 1e-6 of the largest value. The weights are in `channels_last`
    order, in which convolutions are faster. Outputs are contiguous again, (N, C, H, W), as
    Trans-Nets, feature caches and views in other code need them.

    The module does not change. The result has only the layers that it needs: a head has no tail.
    Weights that need no change are shared, not copied (those of linear layers on the same device).
    If the module is trained further, freeze it anew.

    Args:
        module: a classifier, or a graph of `models.split`; it returns a tensor or a tuple of
            tensors.
        device: where the result computes.

    Returns:
        The network, in evaluation mode and without gradients.
    """
    frozen = freeze_plainly(module)
    _fold_batch_norms(frozen)
    return frozen.to(memory_format=torch.channels_last).to(device)


def freeze_plainly(module: nn.Module) -> fx.GraphModule:
    """Make the plain frozen form of a network: the same operations as in evaluation mode.

    Returns:
        The network, in evaluation mode and without gradients. It shares the weights of `module`.
    """
    # deepcopy's memo names what is copied already: weights are shared, modules are copied.
    detached = {id(tensor): _without_gradient(tensor) for tensor in _tensors(module)}
    copied = copy.deepcopy(module, detached)
    is_traced = isinstance(copied, fx.GraphModule)
    frozen: Any = copied if is_traced else fx.GraphModule(copied, trace(copied)[0], "Frozen")
    frozen.eval()
    _return_contiguous(frozen.graph)
    frozen.recompile()
    return frozen


def _tensors(module: nn.Module) -> list[Tensor]:
    """List parameters, buffers, and the tensors that modules hold as plain attributes.

    The weights that `weight_norm` computes are such attributes. They have a gradient's history,
    which `deepcopy` refuses.
    """
    attributes = [value for layer in module.modules() for value in vars(layer).values()]
    plain = [value for value in attributes if isinstance(value, Tensor)]
    return [*module.parameters(), *module.buffers(), *plain]


def _without_gradient(tensor: Tensor) -> Tensor:
    """Give a tensor of the same memory that needs no gradient; a parameter stays a parameter."""
    values = tensor.detach()
    is_parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(values, requires_grad=False) if is_parameter else values


def _fold_batch_norms(net: fx.GraphModule) -> None:
    """Replace each convolution that only a BatchNorm reads by one that does the work of both."""
    calls = Counter(node.target for node in net.graph.nodes)
    for node in list(net.graph.nodes):
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or not node.op == source.op == "call_module":
            continue
        conv: Any = net.get_submodule(str(source.target))
        norm: Any = net.get_submodule(str(node.target))
        if not _is_just(conv, nn.Conv2d) or not _is_just(norm, nn.BatchNorm2d, FixedBatchNorm2d):
            continue
        # Fold only where nobody else reads the convolution's output, and no second call uses its
        # weights. A BatchNorm without running statistics takes those of the batch: nothing to fold.
        alone = len(source.users) == 1 and calls[source.target] == 1
        if norm.running_mean is not None and alone:
            net.set_submodule(str(source.target), fuse_conv_bn_eval(conv, norm))
            node.replace_all_uses_with(source)
            net.graph.erase_node(node)
    # The folded BatchNorms have no caller any more.
    net.delete_all_unused_submodules()
    net.recompile()


def _is_just(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a module computes exactly what one of these classes computes.

    A subclass may do more (timm's BatchNormAct2d activates). So may hooks, or a `forward` that was
    set on this one module. Parametrisations make a subclass. The older `weight_norm`,
    `spectral_norm` and pruning leave a weight that is no parameter.
    """
    hooks = (module._forward_pre_hooks, module._forward_hooks)
    return (
        type(module) in kinds
        and not any(hooks)
        and "forward" not in vars(module)
        and all(
            name not in vars(module)
            and type(module._parameters.get(name)) in (nn.Parameter, type(None))
            for name in ("weight", "bias")
        )
    )


def _return_contiguous(graph: fx.Graph) -> None:
    """Let a graph return its tensors in PyTorch's ordinary memory order."""
    output = graph.output_node()
    with graph.inserting_before(output):
        output.args = fx.map_arg(output.args, lambda node: graph.call_method("contiguous", (node,)))
