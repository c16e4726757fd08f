"""StylEx: live conditioning, losses beside closed forms, and where gradients go."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from medvae.data import CohortError
from medvae.engines import PrepareAttributes, StylexStep
from medvae.losses import (
    ClassConsistency,
    FeatureDistance,
    PathLength,
    ReconstructionLoss,
    class_divergence,
    perceptual_term,
    r1_penalty,
)
from medvae.losses.adversarial import path_lengths
from medvae.networks import (
    FactorClassifier,
    FrozenClassifier,
    StylEx,
    check_layers,
    load_classifier,
)

both = pytest.mark.parametrize("spatial_dims", [2, 3])
HEADS = {"dx": 3, "sex": 1}
SIZE = {2: (16, 16), 3: (8, 8, 8)}


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network_of(spatial_dims):
    torch.manual_seed(0)
    channels = (8, 6, 4) if spatial_dims == 2 else (8, 6)
    return StylEx(spatial_dims, HEADS, SIZE[spatial_dims], channels, latent_dim=5, mapping_layers=2)


def classifier_of(spatial_dims):
    network = FactorClassifier(spatial_dims, 1, {"dx": 3, "sex": 2}, (4, 4, 4, 4))
    return FrozenClassifier(network, {"dx": 3, "sex": 2}, "logits")


def images(spatial_dims, count=4):
    return normal(1, count, 1, *SIZE[spatial_dims]).sigmoid()


@both
def test_the_classes_are_live_in_generator_and_discriminator(spatial_dims):
    network = network_of(spatial_dims).eval()
    image = images(spatial_dims)
    assert network.classes == 5
    p = network.probabilities(normal(2, 4, 4))
    torch.testing.assert_close(p[:, :3].sum(1), torch.ones(4))
    torch.testing.assert_close(p[:, 3:].sum(1), torch.ones(4))
    other = p.flip(0)
    w = network.encode(image, p)
    changed = torch.cat([w[:, :5], other], 1)
    assert (network.decode(w) - network.decode(changed)).abs().max() > 1e-4
    assert (network(image, p) - network(image, other)).abs().max() > 1e-4
    judge = network.discriminator
    scores = judge(image, p)
    assert not torch.equal(scores, judge(image, other))
    torch.testing.assert_close(
        scores, (p * judge.class_scores(image)).sum(1, keepdim=True), atol=1e-6, rtol=0
    )
    assert network(image, p).shape == image.shape
    assert network.decode(w).min() >= 0


def test_divergences_are_those_of_two_distributions():
    p = torch.tensor([[0.9, 0.1]]).log()
    q = torch.tensor([[0.5, 0.5]]).log()
    assert class_divergence(p, p) == 0
    assert class_divergence(p, q).item() == pytest.approx(0.36806, abs=1e-5)
    assert class_divergence(p, q, "reconstruction").item() == pytest.approx(0.51083, abs=1e-5)
    entropy = -(p.exp() * p).sum()
    cross = -(p.exp() * q.log_softmax(1)).sum()
    torch.testing.assert_close(cross - class_divergence(p, q), entropy)
    one = torch.tensor([[1.7]])
    two = torch.tensor([[0.0, 1.7]])
    torch.testing.assert_close(class_divergence(one, -one), class_divergence(two, -two))
    both_heads = ClassConsistency(HEADS, {"sex": 2.0})
    logits, again = normal(3, 6, 4), normal(4, 6, 4)
    expected = class_divergence(logits[:, :3], again[:, :3])
    expected = expected + 2 * class_divergence(logits[:, 3:], again[:, 3:])
    torch.testing.assert_close(both_heads(logits, again), expected)
    with pytest.raises(ValueError, match="direction"):
        class_divergence(p, q, "forward")
    with pytest.raises(ValueError, match="age"):
        ClassConsistency(HEADS, {"age": 1.0})


def test_penalties_have_their_closed_forms():
    a = normal(5, 12)
    image = normal(6, 3, 1, 3, 4).requires_grad_()
    score = (image.flatten(1) @ a)[:, None]
    torch.testing.assert_close(r1_penalty(score, image), a.square().sum())
    matrix = normal(7, 12, 4)
    w = torch.ones(10_000, 1, 4, requires_grad=True)
    drawn = (w[:, 0] @ matrix.T).reshape(-1, 1, 3, 4)
    torch.manual_seed(0)
    lengths = path_lengths(drawn, w)
    expected = matrix.square().sum() / 12
    assert abs(lengths.square().mean() / expected - 1) < 0.03


def test_reconstruction_adds_what_it_says():
    x, y = normal(8, 2, 1, 8, 8), normal(9, 2, 1, 8, 8)
    codes, again = normal(1, 2, 5), normal(2, 2, 5)

    def double(a, b):
        return (a - b).square().mean()

    terms = ReconstructionLoss(2.0, 3.0, 5.0, double)(x, y, codes, again)
    torch.testing.assert_close(terms["voxels"], 2 * (x - y).abs().mean())
    torch.testing.assert_close(terms["codes"], 5 * (codes - again).abs().mean())
    torch.testing.assert_close(terms["perceptual"], 3 * (x - y).square().mean() / 4)
    assert "perceptual" not in ReconstructionLoss()(x, y, codes, again)


def test_a_perceptual_term_by_its_name(monkeypatch):
    classifier = FrozenClassifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), {"a": 2}, "logits")
    assert isinstance(perceptual_term("classifier", classifier), FeatureDistance)
    assert perceptual_term("none", classifier) is None
    asked = []
    monkeypatch.setattr("medvae.losses.stylex.PerceptualLoss", lambda *a, **k: asked.append((a, k)))
    for spatial_dims in (2, 3):
        perceptual_term("lpips", classifier, spatial_dims)
    alike = [((2, "alex"), {"is_fake_3d": False}), ((3, "alex"), {"is_fake_3d": True})]
    assert asked == alike
    with pytest.raises(ValueError, match="perceptual is 'vgg'"):
        perceptual_term("vgg", classifier)


@both
def test_features_of_the_classifier_are_a_distance(spatial_dims):
    classifier = classifier_of(spatial_dims)
    distance = FeatureDistance(classifier.features)
    x, y = images(spatial_dims), images(spatial_dims).flip(0)
    assert distance(x, x) == 0
    assert distance(x, y) > 0
    y = y.clone().requires_grad_()
    distance(x, y).backward()
    assert y.grad.abs().max() > 0
    layered = FrozenClassifier(
        classifier.network, classifier.heads, "logits", feature_layers=["body.layer1"]
    )
    assert layered.features(x)[0].ndim == spatial_dims + 2


def step_of(spatial_dims, **options):
    network, classifier = network_of(spatial_dims), classifier_of(spatial_dims)
    network = StylEx(
        spatial_dims,
        classifier.heads,
        SIZE[spatial_dims],
        (8, 6),
        latent_dim=5,
        mapping_layers=2,
    )
    trained = copy.deepcopy(network)
    made = [*trained.generator.parameters(), *trained.encoder.parameters()]
    step = StylexStep(
        network,
        trained,
        classifier,
        torch.optim.Adam(trained.discriminator.parameters(), 2e-3, (0.0, 0.99)),
        torch.optim.Adam(made, 2e-3, (0.0, 0.99)),
        ReconstructionLoss(perceptual=FeatureDistance(classifier.features)),
        ClassConsistency(classifier.heads),
        PathLength(),
        **options,
    )
    engine = SimpleNamespace(
        state=SimpleNamespace(device="cpu", iteration=0, epoch=1),
        prepare_batch=PrepareAttributes(label=False),
        non_blocking=False,
        to_kwargs={},
    )
    return step, engine


@both
def test_gradients_reach_what_they_should(spatial_dims):
    step, engine = step_of(spatial_dims, r1_interval=2, path_interval=2)
    classifier = {k: v.clone() for k, v in step.classifier.state_dict().items()}
    batch = {"image": images(spatial_dims)}
    trained = step.trained
    for iteration in (1, 2):  # drawn codes, then encoded ones
        engine.state.iteration = iteration
        before = {k: v.clone() for k, v in trained.named_parameters()}
        (terms,) = step(engine, batch)
        moved = {
            k.split(".")[0] + "." + k.split(".")[1]
            for k, v in before.items()
            if not torch.equal(v, dict(trained.named_parameters())[k])
        }
        assert ("generator.mapping" in moved) == (iteration == 1)
        assert any(name.startswith("encoder") for name in moved) == (iteration == 2)
        assert {"generator.convs", "generator.constant", "discriminator.scores"} <= moved
        assert (terms["g_consistency"] > 0) == (iteration == 2)
        assert (terms["d_r1"] > 0) == (iteration == 2)
        parts = [value for name, value in terms.items() if name != "loss"]
        torch.testing.assert_close(terms["loss"], torch.stack(parts).sum())
    for name, value in step.classifier.state_dict().items():
        assert torch.equal(classifier[name], value)
    image = 2 * batch["image"] - 1
    with torch.no_grad():
        logits = step.classifier(batch["image"])
    made = step.generate(image, trained.probabilities(logits), True)
    trained.zero_grad()
    step.consistency(logits, step.classifier((made.image + 1) / 2)).backward()
    for part in (trained.encoder.dense, trained.generator.convs[1].style):
        assert part.weight.grad.abs().max() > 0
    assert trained.generator.convs[1].conv.weight.grad.abs().max() > 0
    assert all(p.grad is None for p in trained.generator.mapping.parameters())
    assert all(p.grad is None for p in step.classifier.parameters())


def test_encoder_inputs_alone_leave_the_mapping_network_out():
    step, engine = step_of(2, inputs="encoder", half_life=0)
    before = copy.deepcopy(step.trained.generator.mapping.state_dict())
    engine.state.iteration = 1
    step(engine, {"image": images(2)})
    after = step.trained.generator.mapping.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for name, value in step.trained.state_dict().items():
        if "fixed" not in name:
            assert torch.equal(step.network.state_dict()[name], value), name
    with pytest.raises(ValueError, match="inputs"):
        step_of(2, inputs="noise")
    with pytest.raises(CohortError, match="not finite"):
        step(engine, {"image": images(2) * torch.nan, "id": list("abcd")})


def _unsaid():
    raise AssertionError  # as an exported program raises it, without a word


class Odd(nn.Module):
    """A classifier with one peculiarity."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, image):
        values = image.flatten(1)[:, :2] * 4
        return {
            "softmax": lambda: values.softmax(1),
            "sigmoid": lambda: values.sigmoid(),
            "pairs": lambda: (values + torch.tensor(0.1)) if len(image) == 4 else _unsaid(),
            "constant": lambda: torch.zeros_like(values) + 0.3,
            "nan": lambda: values * torch.nan,
            "chance": lambda: nn.functional.dropout(values + 1, 0.5, True),
            "batch": lambda: values - values.mean(0) + torch.arange(2.0),
            "wide": lambda: image.flatten(1)[:, :3],
            "channels": lambda: nn.functional.conv2d(image, torch.ones(2, 3, 1, 1)),
            "good": lambda: values,
        }[self.kind]()


@pytest.mark.parametrize(
    ("kind", "heads", "outputs", "sentence"),
    [
        ("softmax", [2], "logits", "add up to 1; expected classifier_outputs: probabilities"),
        (
            "sigmoid",
            [1, 1],
            "logits",
            r"lie in \[0, 1\] for all 4 images; expected classifier_outp",
        ),
        ("good", [2], "probabilities", "is said to return probabilities"),
        ("constant", [2], "logits", "^The classifier says the same of all 4 images"),
        ("nan", [2], "logits", "not finite"),
        ("chance", [2], "logits", "change from call to call"),
        ("batch", [2], "logits", "depends on the others of its batch"),
        (
            "wide",
            [2],
            "logits",
            r"^The classifier returns \(4, 3\) for 4 images; expected \(4, 2\)",
        ),
        ("channels", [2], "logits", r"refuses images of shape \(4, 1, 16, 16\)"),
        ("pairs", [2], "logits", r"refuses images of shape \(1, 1, 16, 16\) \(AssertionError\)"),
    ],
)
def test_a_classifier_that_does_not_fit_is_refused_in_a_sentence(kind, heads, outputs, sentence):
    named = dict(zip(("dx", "sex"), heads, strict=False))
    with pytest.raises(CohortError, match=sentence):
        FrozenClassifier(Odd(kind), named, outputs).check(images(2) + normal(1, 4, 1, 16, 16))


def test_a_classifier_stays_as_it_is():
    classifier = FrozenClassifier(Odd("good"), {"dx": 2}, "logits")
    classifier.check(images(2))
    nn.Sequential(classifier).train()
    assert not classifier.training
    FrozenClassifier(Odd("good"), {"dx": 1, "sex": 1}, "logits").check(images(2))
    sigmoids = FrozenClassifier(Odd("sigmoid"), {"dx": 1, "sex": 1}, "probabilities")
    sigmoids.check(images(2))
    torch.testing.assert_close(sigmoids(images(2)), classifier(images(2)))
    soft = FrozenClassifier(Odd("softmax"), {"dx": 2}, "probabilities")
    soft.check(images(2))
    torch.testing.assert_close(soft(images(2)).softmax(1), classifier(images(2)).softmax(1))
    scaled = FrozenClassifier(Odd("good"), {"dx": 2}, "logits", (2.0, -1.0))
    torch.testing.assert_close(scaled(images(2)), classifier(2 * images(2) - 1))
    with pytest.raises(ValueError, match="batch even in evaluation"):
        FrozenClassifier(nn.BatchNorm2d(1, track_running_stats=False), {"dx": 2}, "logits")
    with pytest.raises(ValueError, match="'logits' or 'probabilities'"):
        FrozenClassifier(Odd("good"), {"dx": 2}, "scores")
    with pytest.raises(ValueError, match="no layer 'bodi'"):
        FrozenClassifier(Odd("good"), {"dx": 2}, "logits", feature_layers=["bodi"])


def dense():
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 2)).eval()


def saved(kind: str, folder: Path) -> tuple[Path, nn.Module | None]:
    """A classifier in a file or folder, and the network that the file's weights need."""
    network, path = dense(), folder / "classifier.pt"
    if kind == "weights":
        torch.save(network.state_dict(), path)
        return path, nn.Sequential(nn.Flatten(), nn.Linear(256, 2))
    if kind == "script":
        torch.jit.trace(network, images(2)).save(path)
    elif kind == "export":
        path = folder / "classifier.pt2"
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(network, (images(2),), dynamic_shapes=({0: batch},))
        torch.export.save(program, path)
    else:
        (folder / "configs").mkdir()
        (folder / "models").mkdir()
        layers = ["$torch.nn.Flatten()", "$torch.nn.Linear(256, @outputs)"]
        config = {"imports": ["$import torch"], "outputs": 2, "layers": layers}
        config["network_def"] = "$torch.nn.Sequential(*@layers)"
        (folder / "configs" / "inference.json").write_text(json.dumps(config))
        torch.save(network.state_dict(), folder / "models" / "model.pt")
        return folder, None
    return path, None


@pytest.mark.parametrize("kind", ["weights", "script", "export", "bundle"])
def test_any_file_of_a_classifier_gives_the_same_answers(kind, tmp_path):
    path, network = saved(kind, tmp_path)
    classifier = FrozenClassifier(load_classifier(path, network), {"dx": 2}, "logits")
    classifier.check(images(2))
    x = images(2).requires_grad_()
    found = classifier(x)
    torch.testing.assert_close(found, dense()(x))
    found.sum().backward()
    assert x.grad.abs().max() > 0
    assert not any(p.requires_grad for p in classifier.parameters())
    if kind in ("script", "export"):
        for show in (partial(classifier.features, x), partial(check_layers, classifier.network)):
            with pytest.raises(CohortError, match="shows no layer.* expected perceptual: none"):
                show()
    else:
        check_layers(classifier.network)
        assert len(classifier.features(x)) == 1


def test_a_network_without_a_linear_layer_is_asked_for_its_layers():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(CohortError, match="or feature_layers"):
        check_layers(network)
    check_layers(network, ["0"])


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"num_channels": 3}, r"takes images of 3 channel\(s\), and in_channels is 1; expected"),
        ({"spatial_shape": [32, 16]}, r"image_size is \[16, 16\]; expected image_size \[32, 16\]"),
        ({"spatial_shape": [16, 16, 16]}, "image_size is"),
        ({"value_range": [0, 255]}, r"classifier_scale is \[2.0, -1.0\]; .* \[255.0, 0.0\]"),
        ({"num_channels": 1, "spatial_shape": [16, 16], "value_range": [-1, 1]}, None),
        ({"spatial_shape": ["8*n", "8*n"], "value_range": []}, None),
        (None, None),
    ],
)
def test_a_bundle_is_given_what_its_metadata_says_it_takes(said, sentence, tmp_path):
    path, _ = saved("bundle", tmp_path)
    metadata = {} if said is None else {"network_data_format": {"inputs": {"image": said}}}
    (path / "configs" / "metadata.json").write_text(json.dumps(metadata))
    load = partial(load_classifier, path, None, "cpu", 1, 16 if said is None else [16, 16], [2, -1])
    if sentence is None:
        load()
        return
    with pytest.raises(CohortError, match=sentence):
        load()
    load_classifier(path)  # not compared with anything


def test_a_classifier_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(CohortError, match="does not exist"):
        load_classifier(tmp_path / "none.pt")
    (tmp_path / "bad.pt").write_bytes(b"PK no archive")
    with pytest.raises(CohortError, match="as a whole network"):
        load_classifier(tmp_path / "bad.pt")
    with pytest.raises(CohortError, match="expected a MONAI bundle"):
        load_classifier(tmp_path)
