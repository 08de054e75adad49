"""Which tensors depend on the image: data costs, constants do not."""

import torch
from torch import nn

from micronet_lib.scoring.dataflow import Dataflow, storage, tensors


def test_tensors_are_found_in_nested_values_in_order():
    one, two, three = (torch.zeros(1) for _ in range(3))
    found = list(tensors([one, {"a": (two, "b")}, 4, [three]]))
    assert [id(tensor) for tensor in found] == [id(one), id(two), id(three)]


def test_a_view_is_the_tensor_that_it_looks_at():
    whole = torch.zeros(4, 4)
    assert storage(whole[1:].T) == storage(whole)
    assert storage(whole.clone()) != storage(whole)


def test_parameters_are_constants_and_what_is_made_from_the_image_is_data():
    layer, image = nn.Linear(3, 2), torch.zeros(1, 3)
    flow = Dataflow(layer, image)
    halved = layer.weight / 2
    flow.note([layer.weight], [halved], range(0))
    out = image @ halved.T
    flow.note([image, halved], [out], range(0, 1))
    assert [flow.is_data(t) for t in (image, layer.weight, halved, out)] == [
        *(True, False, False, True)
    ]
    assert flow.sources[storage(halved)] == {"weight"}
    assert flow.needs[storage(out)] == {0}
