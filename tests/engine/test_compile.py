"""train.compile: the same answers, the same names of weights, and one message where there is no compiler."""

import pytest
import torch

from detectron2.config import instantiate
from sam_d2.config import apply_overrides, load_config
from sam_d2.engine.compile import compile_parts
from sam_d2.errors import UserError
from sam_d2.modeling.prompts import Prompts


@pytest.fixture
def make_model(root, tiny_overrides):
    def make():
        torch.manual_seed(0)
        return instantiate(apply_overrides(load_config(root / "configs" / "sam_tiny.py"), tiny_overrides).model)

    return make


def answers(model):
    """Logits, predicted IoU and gradients of two boxes of an image."""
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    boxes = torch.tensor([[4.0, 6.0, 30.0, 40.0], [20.0, 10.0, 60.0, 50.0]])
    logits, predicted_iou = model.decode(model.encode(image)[0], Prompts(boxes=boxes))
    (logits.square().mean() + predicted_iou.sum()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"logits": logits.detach(), "iou": predicted_iou.detach(), **gradients}


def assert_compiled_is_the_same(make_model, backend):
    plain, compiled = make_model(), make_model()
    compile_parts(compiled, backend=backend)
    assert list(plain.state_dict()) == list(compiled.state_dict())
    expected, found = answers(plain), answers(compiled)
    assert expected.keys() == found.keys() and len(expected) > 50
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    with torch.no_grad():
        image = torch.randn(1, 3, 64, 64)
        torch.testing.assert_close(compiled.encode(image), plain.encode(image), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_traced_it_answers_the_same(make_model):
    """All of torch.compile but the kernels: traced, differentiated ahead of time, run by torch's own operators."""
    assert_compiled_is_the_same(make_model, "aot_eager")


def test_few_graphs_serve_any_number_of_prompts(make_model):
    """After a few dozens of steps torch.compile would give up on a function that it compiles anew for each number."""
    model, graphs = make_model(), []
    model.mask_decoder.compile(backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    embedding = model.encode(torch.zeros(1, 3, 64, 64))[0].detach()
    for count in range(1, 13):
        boxes = torch.tensor([[4.0, 6.0, 30.0, 40.0]]).repeat(count, 1)
        model.decode(embedding, Prompts(boxes=boxes))
    assert len(graphs) <= 4


@pytest.mark.slow
def test_compiled_it_answers_the_same(make_model):
    assert_compiled_is_the_same(make_model, "inductor")


def test_no_compiler_is_one_message(make_model, monkeypatch):
    model = make_model()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler, and no-such-compiler is not found\. Install it"):
        compile_parts(model)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    with pytest.raises(UserError, match=r"needs Triton on a GPU.*pip install triton"):
        compile_parts(model)


def test_a_model_without_the_parts_is_refused():
    with pytest.raises(UserError, match=r"no image_encoder and no mask_decoder; only SAM has"):
        compile_parts(torch.nn.Linear(1, 1))
