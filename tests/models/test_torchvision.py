import pytest
import torch
from pydantic import ValidationError
from torchvision import models

from stages.models.torchvision import Settings, build


def test_any_classification_network_is_built_by_its_name_from_fresh_weights():
    network = build(Settings(name="mobilenet_v2", epochs=1), 7)
    network.load_state_dict(models.mobilenet_v2(num_classes=7).state_dict())
    assert network.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert Settings(name="mobilenet_v2", epochs=1).title == "mobilenet_v2"


@pytest.mark.parametrize(("name", "size", "deviation"), [("googlenet", 32, 0.01), ("inception_v3", 75, 0.1)])
def test_networks_with_further_outputs_for_training_have_one_here_and_their_own_first_weights(name, size, deviation):
    torch.manual_seed(0)
    network = build(Settings(name=name, epochs=1), 7).train()
    assert network(torch.zeros(2, 3, size, size)).shape == (2, 7)
    assert next(network.parameters()).detach().std().item() == pytest.approx(deviation, rel=0.06)


@pytest.mark.parametrize("name", ["resnet19", "fasterrcnn_resnet50_fpn"])
def test_a_name_that_is_no_classification_network_is_refused(name):
    with pytest.raises(ValidationError, match=r"must be a network that torchvision\.models\.list_models"):
        Settings(name=name, epochs=1)
