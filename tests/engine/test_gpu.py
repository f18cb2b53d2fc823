"""A training step on a GPU: the host waits for nothing, and the results are those of the processor."""

import copy

import pytest
import torch
from detectron2.modeling import build_model

pytestmark = [pytest.mark.detectron2, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

FROZEN = ["MODEL.RESNETS.NORM", "FrozenBN", "MODEL.PIXEL_STD", "[500., 500., 500.]"]
TRITON = ["MODEL.FOCAL_DET.SPEED.TRITON"]


def pinned(batch):
    return [{**x, "image": x["image"].pin_memory()} for x in batch]


def model_on(device, cfg):
    """The same weights on every device."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(0)
    model = build_model(cfg).to(device)
    return model


@pytest.mark.parametrize("triton", ["True", "False"])
@pytest.mark.parametrize("autocast", [True, False])
def test_the_host_does_not_wait_in_a_training_step(tiny_cfg, batch_of, triton, autocast):
    model = model_on("cuda", tiny_cfg(*FROZEN, *TRITON, triton))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, fused=True)
    batches = [pinned(batch_of(counts)) for counts in ((3, 5), (0, 4), (0, 0))]

    def step(batch):
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
            losses = model(batch)
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()

    step(batches[0])  # anchors, constants and kernels are made once
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("triton", ["True", "False"])
@pytest.mark.parametrize("counts", [(3, 5), (0, 4), (0, 0)])
def test_losses_and_gradients_are_those_of_the_processor(tiny_cfg, batch_of, counts, triton):
    cfg = tiny_cfg(*FROZEN, *TRITON, triton)
    batch = batch_of(counts)
    on_cpu, on_gpu = model_on("cpu", cfg), model_on("cuda", cfg)
    expected, found = on_cpu(copy.deepcopy(batch)), on_gpu(copy.deepcopy(batch))
    for losses in (expected, found):
        sum(losses.values()).backward()
    for name, loss in expected.items():
        torch.testing.assert_close(found[name].cpu(), loss, rtol=1e-3, atol=1e-6)  # convolutions may use TF32
    for (name, own), other in zip(on_gpu.named_parameters(), on_cpu.parameters(), strict=True):
        scale = other.grad.abs().max().item()
        torch.testing.assert_close(own.grad.cpu(), other.grad, rtol=0, atol=1e-2 * scale + 1e-9, msg=name)


def test_detections_are_those_of_the_processor(tiny_cfg, batch_of):
    cfg, batch = tiny_cfg(*FROZEN), batch_of((0, 0, 0))
    results = []
    for device in ("cpu", "cuda"):
        model = model_on(device, cfg).eval()
        with torch.no_grad():
            model.head.cls_score.bias.fill_(-2.0)
            results.append([x["instances"].to("cpu") for x in model(copy.deepcopy(batch))])
    for expected, found in zip(*results, strict=True):
        assert abs(len(found) - len(expected)) <= max(2, len(expected) // 20)
        torch.testing.assert_close(found.scores[:5], expected.scores[:5], rtol=1e-2, atol=1e-3)
