"""Convolution blocks and the normalisations that replace torch's on channels-last tensors."""

import io
import math

import pytest
import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from torch import nn

from medvae.networks.blocks import BatchNorm, ConvBlock, GroupNorm, init_xavier_uniform

# odd sizes leave a last tile that is not full, and voxels that do not fill the lanes of a row
SHAPES = [(4, 3, 7, 5), (3, 8, 200, 151), (2, 64, 5, 5, 5), (3, 5, 31, 29, 17), (2, 4, 32, 32, 32)]


def channels_last(x: torch.Tensor) -> torch.Tensor:
    memory_format = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    return x.contiguous(memory_format=memory_format)


def per_channel(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return values.view(1, -1, *[1] * (x.dim() - 2))


def torch_batch_norm(x: torch.Tensor, channels: int, **arguments: object) -> nn.Module:
    return (nn.BatchNorm2d if x.dim() == 4 else nn.BatchNorm3d)(channels, **arguments)


@pytest.fixture
def threads():
    """A function that sets the number of threads; the former number comes back after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(2, 2, 128, 128, 128), (2, 2, 2048, 1024)])
def test_batch_norm_of_a_large_channels_last_tensor_is_exact_for_any_number_of_threads(
    shape, threads
):
    # 2**22 voxels per channel: torch's own kernel is wrong in the third digit here
    torch.manual_seed(0)
    x = channels_last(torch.randn(shape) * 0.1 + 3.0)
    weight = torch.randn(shape)
    results = []
    for number in (1, 2):
        threads(number)
        leaf = x.clone().requires_grad_()
        layer = BatchNorm(2, momentum=1.0)
        y = layer(leaf)
        (y * weight).sum().backward()
        results.append([y.detach(), layer.running_mean, layer.running_var, leaf.grad])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    threads(1)

    y, mean, var, grad = results[0]
    exact = x.double()
    axes = [axis for axis in range(x.dim()) if axis != 1]
    exact_var, exact_mean = torch.var_mean(exact, axes)
    torch.testing.assert_close(mean.double(), exact_mean, rtol=1e-7, atol=0)
    torch.testing.assert_close(var.double(), exact_var, rtol=1e-6, atol=0)
    exact.requires_grad_()
    expected = F.batch_norm(exact, None, None, training=True)
    (expected * weight).sum().backward()
    assert (y - expected).abs().max() < 5e-6
    assert (grad - exact.grad).abs().max() < 1e-6 * exact.grad.abs().max()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_in_training_equals_torch_in_float64(shape, affine):
    torch.manual_seed(1)
    channels = shape[1]
    x = channels_last(torch.randn(shape) * torch.rand(channels).view(1, -1, *[1] * len(shape[2:])))
    ours = BatchNorm(channels, affine=affine)
    theirs = torch_batch_norm(x, channels, affine=affine).double()
    if affine:
        nn.init.normal_(ours.weight)
        nn.init.normal_(ours.bias)
    theirs.load_state_dict(ours.state_dict())
    direction = torch.randn(shape)  # contiguous: the gradient comes in another memory format
    for _ in range(3):  # the running statistics add up
        x += 1.0
        leaf, exact = x.clone().requires_grad_(), x.double().contiguous().requires_grad_()
        y, expected = ours(leaf), theirs(exact)
        ours.zero_grad()
        theirs.zero_grad()
        (y.contiguous() * direction).sum().backward()
        (expected * direction).sum().backward()
        assert y.stride() == x.stride()
        torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=2e-5)
        torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=1e-4, atol=1e-4)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-4, atol=1e-3)
    state = theirs.state_dict()
    assert ours.state_dict().keys() == state.keys()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value.double(), state[name].double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 3, 3, 2), (3, 2, 2, 3, 2)])
def test_batch_norm_passes_gradcheck(shape):
    torch.manual_seed(2)
    layer = BatchNorm(shape[1]).double()
    x = channels_last(torch.randn(shape, dtype=torch.float64)).requires_grad_()
    weight = torch.randn(shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.randn(shape[1], dtype=torch.float64, requires_grad=True)

    def normalise(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, x)

    assert torch.autograd.gradcheck(normalise, (x, weight, bias))


@pytest.mark.parametrize("shape", [(2, 4, 9, 8), (1, 4, 5, 4, 3)])
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("track", [True, False])
def test_batch_norm_takes_over_torchs_arguments_and_state(shape, layout, momentum, track):
    torch.manual_seed(3)
    x = torch.randn(shape) + 1.0
    arguments = {"momentum": momentum, "track_running_stats": track, "eps": 1e-3}
    theirs = torch_batch_norm(x, shape[1], **arguments)
    ours = BatchNorm(shape[1], **arguments)
    for step in range(3):
        batch = x + step
        expected = theirs(batch)
        y = ours(channels_last(batch) if layout == "channels last" else batch)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-6, atol=1e-6)
    ours.load_state_dict(theirs.state_dict())
    ours.eval()
    theirs.eval()
    if track:  # the same kernel on the same numbers
        assert torch.equal(ours(x), theirs(x))
    else:
        torch.testing.assert_close(ours(channels_last(x)), theirs(x), rtol=1e-5, atol=1e-6)


def test_batch_norm_stops_tracking_when_told_to():
    torch.manual_seed(12)
    ours, theirs = BatchNorm(3), nn.BatchNorm2d(3)
    for layer in (ours, theirs):
        layer.track_running_stats = False
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(ours(channels_last(x)), theirs(x), rtol=1e-5, atol=1e-6)
    assert all(
        torch.equal(a, b)
        for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_batch_norm_keeps_statistics_in_single_precision_for_half_precision_input(dtype):
    torch.manual_seed(4)
    x = channels_last(torch.randn(2, 8, 40, 40, 40) * 0.5 + 2.0).to(dtype).requires_grad_()
    layer = BatchNorm(8, momentum=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    direction = torch.randn(x.shape, dtype=torch.float32)
    (y.float() * direction).sum().backward()
    exact = x.detach().double().requires_grad_()
    expected = F.batch_norm(exact, None, None, training=True)
    (expected * direction).sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    var, mean = torch.var_mean(exact.detach(), (0, 2, 3, 4))
    torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(layer.running_var.double(), var, rtol=1e-5, atol=0)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), expected, rtol=eps, atol=1e-5)
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=2 * eps, atol=eps)


def test_batch_norm_converts_to_synchronised_batch_norm():
    block = ConvBlock(3, 1, 4)
    nn.init.normal_(block.norm.weight)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(block)
    assert isinstance(converted.norm, nn.SyncBatchNorm)
    assert torch.equal(converted.norm.weight, block.norm.weight)


def test_batch_norm_refuses_a_table():
    with pytest.raises(ValueError, match="found 2"):
        BatchNorm(3)(torch.rand(4, 3))


@pytest.mark.parametrize("shape", [(1, 4, 96, 96, 96), (1, 4, 1024, 1024)])
def test_group_norm_of_a_large_channels_last_tensor_is_exact(shape):
    torch.manual_seed(5)
    x = channels_last(torch.randn(shape) * 0.1 + 3.0)
    expected = F.group_norm(x.double(), 2)
    assert (GroupNorm(2, 4)(x) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("norm", ["BATCH", ["GROUP", {"num_groups": 2}], "INSTANCE", None])
@pytest.mark.parametrize("stride", [1, 2, "one per axis"])
@pytest.mark.parametrize("resample", ["down", "up"])
def test_conv_block_equals_monais(spatial_dims, norm, stride, resample):
    torch.manual_seed(6)
    stride = (2, 1, 3)[:spatial_dims] if stride == "one per axis" else stride
    arguments = {"norm": norm, "act": ("LEAKYRELU", {"negative_slope": 0.2})}
    block = ConvBlock(spatial_dims, 3, 4, stride, 3, resample, **arguments)
    reference = Convolution(
        spatial_dims, 3, 4, stride, 3, "NA", is_transposed=resample == "up", **arguments
    )
    reference.load_state_dict(
        dict(zip(reference.state_dict(), block.state_dict().values(), strict=True))
    )
    block = block.to(
        memory_format=torch.channels_last if spatial_dims == 2 else torch.channels_last_3d
    )
    x = torch.rand(2, 3, *(6, 8, 6)[:spatial_dims])
    for training in (True, False):
        torch.testing.assert_close(block.train(training)(x), reference.train(training)(x))


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("resample", ["smooth", "resize"])
def test_resampling_leaves_no_checkerboard(spatial_dims, resample):
    block = ConvBlock(spatial_dims, 1, 1, 2, resample=resample, norm=None, act=None)
    transposed = ConvBlock(spatial_dims, 1, 1, 2, resample="up", norm=None, act=None)
    x = torch.ones(1, 1, *(5, 4, 6)[:spatial_dims])
    inner = (..., *[slice(1, -1)] * spatial_dims)
    y = block(x)
    assert y.shape == transposed(x).shape == (1, 1, *(10, 8, 12)[:spatial_dims])
    assert y[inner].std() < 1e-6 < 1e-3 < transposed(x)[inner].std()


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("stride", [1, 2, "one per axis"])
def test_smooth_block_averages_a_transposed_convolution_over_its_stride(spatial_dims, stride):
    torch.manual_seed(12)
    stride = (2, 1, 3)[:spatial_dims] if stride == "one per axis" else (stride,) * spatial_dims
    block = ConvBlock(spatial_dims, 3, 4, stride, resample="smooth", norm=None, act=None)
    transpose, pool = (
        (F.conv_transpose2d, F.avg_pool2d)
        if spatial_dims == 2
        else (F.conv_transpose3d, F.avg_pool3d)
    )
    x = torch.rand(2, 3, *(5, 4, 3)[:spatial_dims])
    whole = F.pad(transpose(x, block.conv.weight, None, stride), [3] * 2 * spatial_dims)
    averaged = pool(whole, stride, stride=1) + per_channel(block.conv.bias, x)
    inner = [
        slice(4 - (s - 1), 4 - (s - 1) + n * s) for n, s in zip(x.shape[2:], stride, strict=True)
    ]
    torch.testing.assert_close(block(x), averaged[(..., *inner)])


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_weights_of_smooth_and_plain_blocks_are_not_confused(spatial_dims):
    plain, smooth = (
        ConvBlock(spatial_dims, 1, 1, 2, resample=resample) for resample in ("up", "smooth")
    )
    for block, other in ((plain, smooth), (smooth, plain)):
        with pytest.raises(RuntimeError, match="conv.window"):
            block.load_state_dict(other.state_dict())


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("resample", ["down", "up", "smooth", "resize"])
@pytest.mark.parametrize("norm", ["BATCH", ("GROUP", {"num_groups": 2}), "INSTANCE", None])
def test_every_parameter_gets_a_finite_gradient(spatial_dims, resample, norm):
    torch.manual_seed(7)
    memory_format = torch.channels_last if spatial_dims == 2 else torch.channels_last_3d
    block = ConvBlock(spatial_dims, 2, 4, 2, resample=resample, norm=norm, dropout=0.1)
    block = block.to(memory_format=memory_format)
    with torch.autocast("cpu", torch.bfloat16):
        y = block(torch.rand(2, 2, *[8] * spatial_dims))
    y.float().square().sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_conv_block_drops_only_in_training():
    block = ConvBlock(2, 1, 8, norm=None, act=None, dropout=0.5)
    x = torch.rand(2, 1, 16, 16)
    assert 0.4 < (block(x) == 0).float().mean() < 0.6
    assert (block.eval()(x) != 0).all()


@pytest.mark.parametrize(
    "arguments", [{"spatial_dims": 1}, {"spatial_dims": 3, "resample": "bigger"}]
)
def test_conv_block_refuses(arguments):
    with pytest.raises(ValueError, match="found"):
        ConvBlock(in_channels=1, out_channels=1, **arguments)


def test_initialisation_covers_every_kind_of_layer():
    torch.manual_seed(8)
    blocks = [
        ConvBlock(spatial_dims, 8, 16, resample=resample)
        for spatial_dims in (2, 3)
        for resample in ("down", "up", "smooth")
    ]
    network = nn.Sequential(*blocks, nn.Linear(8, 16)).apply(init_xavier_uniform)
    for layer in [*(block.conv for block in blocks), network[-1]]:
        fan = (8 + 16) * math.prod(layer.weight.shape[2:])
        bound = math.sqrt(6 / fan)
        assert 0.95 * bound < layer.weight.abs().max() <= bound
        expected = 0.0 if isinstance(layer, nn.Linear) else 0.01
        assert (layer.bias == expected).all()
    assert (blocks[0].norm.weight == 1).all()


def test_one_volume_is_convolved_as_it_is_in_a_batch_and_not_by_the_slow_kernel():
    torch.manual_seed(9)
    block = ConvBlock(3, 4, 4).eval().to(memory_format=torch.channels_last_3d)
    x = torch.rand(3, 4, 12, 12, 12)
    seen = []
    block.conv.register_forward_hook(lambda *call: seen.append(call[-1].shape))
    with torch.no_grad(), torch.profiler.profile() as profile:
        alone = block(x[:1])
    assert seen == [(1, 4, 12, 12, 12)]
    operators = {event.name for event in profile.events()}
    assert "aten::mkldnn_convolution" in operators
    assert not any("slow_conv" in name for name in operators)
    torch.testing.assert_close(alone, block(x)[:1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(alone, block(x[:1]), rtol=1e-6, atol=1e-6)  # with gradients


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("size", [1, 2])
def test_blocks_export(spatial_dims, size):
    torch.manual_seed(10)
    memory_format = torch.channels_last if spatial_dims == 2 else torch.channels_last_3d
    network = nn.Sequential(
        ConvBlock(spatial_dims, 1, 4, 2),
        ConvBlock(spatial_dims, 4, 4, 2, resample="up"),
        ConvBlock(spatial_dims, 4, 4, 2, resample="smooth"),
        ConvBlock(spatial_dims, 4, 4, 2, resample="resize", norm="INSTANCE"),
        ConvBlock(spatial_dims, 4, 1, norm=None, act=None),
    ).to(memory_format=memory_format)
    x = torch.rand(size, 1, *[8] * spatial_dims)
    network(torch.rand(4, 1, *[8] * spatial_dims))  # running statistics that are not 0 and 1
    network.eval()
    with torch.no_grad():
        expected = network(x)
        stored = io.BytesIO()
        torch.jit.save(torch.jit.script(network), stored)
        stored.seek(0)
        torch.testing.assert_close(torch.jit.load(stored)(x), expected)
        torch.testing.assert_close(torch.jit.trace(network, x)(x), expected)
        torch.testing.assert_close(torch.export.export(network, (x,)).module()(x), expected)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_blocks_export_to_onnx(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(11)
    norm = ("GROUP", {"num_groups": 2})
    network = nn.Sequential(
        ConvBlock(3, 1, 4, 2),
        ConvBlock(3, 4, 2, 2, resample="up", norm=norm),
        ConvBlock(3, 2, 2, 2, resample="smooth"),
    ).eval()
    x = torch.rand(1, 1, 8, 8, 8)
    stored = str(tmp_path / "network.onnx")
    with torch.no_grad():
        torch.onnx.export(network, (x,), stored, dynamo=True)
        expected = network(x)
    session = onnxruntime.InferenceSession(stored)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), expected)
