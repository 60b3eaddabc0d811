import torch

from utils.data.batches import normalise


def test_normalise_leaves_its_input_and_works_in_training_after_inference_mode():
    from utils.data.batches import _mean_and_std

    _mean_and_std.cache_clear()
    images = torch.full((1, 3, 2, 2), 128, dtype=torch.uint8)
    with torch.inference_mode():
        normalise(images)
    assert not any(constant.is_inference() for constant in _mean_and_std(torch.device("cpu")))
    weight = torch.ones(3, 1, 1, requires_grad=True)
    (normalise(images) * weight).sum().backward()
    assert weight.grad is not None
    assert images.unique().tolist() == [128]
