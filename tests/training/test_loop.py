import numpy as np
import torch
from torchvision.transforms.v2 import functional as vision

from stages.core import prediction
from stages.core.device import Backend
from stages.core.images import Normalise
from stages.core.models import build_model

CPU = Backend(torch.device("cpu"), "fp32", compile=False)
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.25]


def test_logits_are_those_of_single_images_in_evaluation_mode(monkeypatch):
    monkeypatch.setattr(prediction, "BATCH_SIZE", 4)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3), dtype=np.uint8))
    model = build_model("resnet18", 10, base_channels=16, blocks=[1, 1], seed=2).train()
    model(torch.randn(8, 3, 16, 16))  # running statistics that are not their initial ones
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    logits = prediction.predict(model, images, Normalise(MEAN, STD, CPU.device), CPU)

    assert (logits.shape, logits.dtype, logits.requires_grad) == ((10, 10), torch.float32, False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.eval()
    for image, ours in zip(images, logits, strict=True):
        x = vision.normalize(vision.to_dtype(image.permute(2, 0, 1), torch.float32, scale=True), MEAN, STD)
        torch.testing.assert_close(ours, model(x[None])[0].detach(), rtol=1e-4, atol=1e-5)
