"""Distance correlation beside dcor and closed forms, and the loss that is made of it."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import of_two_ranks

from medvae.losses import (
    SubspaceDependenceLoss,
    distance_correlation,
    distance_correlation_sqr,
    effective_rank,
    u_distance_correlation_sqr,
)
from medvae.losses.dependence import whitened
from medvae.losses.distance import correlations

FORMS = (distance_correlation, distance_correlation_sqr, u_distance_correlation_sqr)
forms = pytest.mark.parametrize("form", FORMS)


def normal(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(scope="module")
def dcor():
    """The oracle, as the Python that it is: numba would compile it for a minute, at its import."""

    def as_it_is(*_, **__):
        return lambda function: function

    with mock.patch.multiple("numba", njit=as_it_is, guvectorize=as_it_is):
        import dcor

    return dcor


@pytest.fixture
def small_blocks():
    with mock.patch.multiple("medvae.losses.distance", BLOCK=7, KEEP=20):
        yield


@forms
@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(5, 40),
    p=st.integers(1, 6),
    q=st.integers(1, 6),
    seed=st.integers(0, 9999),
    scale=st.sampled_from([1e-100, 1e-6, 1.0, 1e8]),
)
def test_equal_to_dcor(dcor, form, n, p, q, seed, scale):
    x, y = normal(seed, n, p), normal(seed + 1, n, q)
    y[:, 0] += x[:, 0]
    expected = getattr(dcor, form.__name__)(x.numpy(), y.numpy())
    assert form(scale * x + scale, y).item() == pytest.approx(expected, abs=1e-8)


@forms
@pytest.mark.parametrize("n", [8, 30])
@pytest.mark.usefixtures("small_blocks")
def test_blocks_change_nothing(dcor, form, n):
    """One block, several that are kept, and several that are computed again."""
    x, y = normal(0, n, 4).requires_grad_(), normal(1, n, 3).requires_grad_()
    value = form(x, y)
    assert value.item() == pytest.approx(
        getattr(dcor, form.__name__)(x.detach().numpy(), y.detach().numpy())
    )
    assert torch.autograd.gradcheck(form, (x, y))


@forms
def test_gradient(form):
    x, y = normal(0, 40, 4).requires_grad_(), normal(1, 40, 2).requires_grad_()
    assert torch.autograd.gradcheck(form, (x, y))


def test_closed_forms():
    x, y = torch.tensor([[0.0], [1], [2]]), torch.tensor([[0.0], [1], [4]])
    assert distance_correlation(x.double(), y.double()).item() == pytest.approx(
        0.9656628854, abs=1e-9
    )
    assert distance_correlation_sqr(x, y).item() == pytest.approx(80 / (40 * 184) ** 0.5)
    assert distance_correlation(x[:2], y[:2]).item() == pytest.approx(1)
    rotation = torch.linalg.qr(normal(0, 5, 5)).Q
    x, y = normal(1, 30, 5), normal(2, 30, 2)
    assert distance_correlation(x, 3 * x @ rotation - 7).item() == pytest.approx(1, abs=1e-12)
    for form in FORMS:
        moved = form(0.1 * x @ rotation + 50, y)
        torch.testing.assert_close(moved, form(x, y), rtol=0, atol=1e-9)
        torch.testing.assert_close(form(y, x), form(x, y))


def test_the_corrected_form_is_0_on_average_and_the_biased_one_at_its_floor():
    draws = [(normal(k, 70, 4), normal(k + 1000, 70, 12)) for k in range(200)]
    corrected = np.mean([u_distance_correlation_sqr(x, y).item() for x, y in draws])
    biased = np.mean([distance_correlation(x, y).item() for x, y in draws])
    assert corrected == pytest.approx(0, abs=0.005)
    assert biased == pytest.approx(0.512, abs=0.01)


@forms
@pytest.mark.parametrize("value", [0.0, 0.1, 1e6, -1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constants_cost_nothing(form, value, dtype):
    x = torch.full((9, 3), value, dtype=dtype).requires_grad_()
    y = normal(0, 9, 2, dtype=dtype).requires_grad_()
    loss = form(x, y)
    loss.backward()
    assert loss == 0
    assert not x.grad.any()
    assert not y.grad.any()


@forms
@pytest.mark.parametrize("scale", [1e-45, 1e-38, 1e-25, 1e-15, 1.0, 1e15, 1e37])
def test_tiny_huge_and_duplicate_rows_are_finite(dcor, form, scale):
    x = (normal(0, 12, 3, dtype=torch.float32) * scale)[[0, 0, 0, *range(12), 5]].requires_grad_()
    y = normal(1, 16, 2, dtype=torch.float32).requires_grad_()
    loss = form(x, y)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(y.grad).all()
    if scale >= 1e-25:
        expected = getattr(dcor, form.__name__)(
            x.detach().double().numpy(), y.detach().double().numpy()
        )
        assert loss.item() == pytest.approx(expected, abs=1e-5)
        assert x.grad.any()


@forms
def test_one_that_differs_and_equal_distances(form):
    """U-centring leaves rounding errors of these, whose quotients would be anything."""
    y = normal(0, 6, 2)
    for x in (torch.eye(6)[:, :1], torch.eye(6)):
        loss = form(x.double().requires_grad_(), y)
        loss.backward()
        assert torch.isfinite(loss)
        if form is u_distance_correlation_sqr:
            assert loss == 0


def test_independent_by_design_has_a_finite_slope():
    x = torch.tensor([[0.0], [0], [1], [1]], requires_grad=True)
    y = torch.tensor([[0.0], [1], [0], [1]], requires_grad=True)
    loss = distance_correlation(x, y)
    loss.backward()
    assert loss == 0
    assert torch.isfinite(x.grad).all()


def test_not_a_number_is_not_hidden():
    x = normal(0, 9, 3)
    x[4, 1] = float("nan")
    for form in FORMS:
        assert form(x, normal(1, 9, 2)).isnan()


@forms
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(form, dtype):
    x, y = normal(0, 30, 3).to(dtype).requires_grad_(), normal(1, 30, 2).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        loss = form(x, y)
        loss.backward()
    assert loss.dtype == torch.float32
    exact = x.detach().float().requires_grad_()
    expected = form(exact, y.float())
    expected.backward()
    assert loss == expected
    assert x.grad.dtype == dtype
    torch.testing.assert_close(x.grad, exact.grad.to(dtype))


def test_what_is_refused():
    x = torch.rand(5, 2)
    with pytest.raises(ValueError, match="shape \\(N, P\\).*\\(5,\\)"):
        distance_correlation(x[:, 0], x)
    with pytest.raises(ValueError, match="same N in every set, found"):
        distance_correlation(x, x[:4])
    with pytest.raises(ValueError, match="at least 4 rows, found 3"):
        u_distance_correlation_sqr(x[:3], x[:3])
    with pytest.raises(ValueError, match="two subspaces or more, .* found \\[3\\]"):
        SubspaceDependenceLoss([3])
    with pytest.raises(ValueError, match="found unbiased=False"):
        SubspaceDependenceLoss([3, 3], unbiased=False, covariates=1)
    with pytest.raises(ValueError, match="expected shapes .*\\(5, 3\\).* found"):
        SubspaceDependenceLoss([2, 3])([x, x])


@pytest.mark.parametrize("unbiased", [True, False])
def test_the_loss_is_the_mean_over_all_pairs(unbiased):
    codes = [normal(k, 20, d) for k, d in enumerate((4, 1, 3))]
    form = u_distance_correlation_sqr if unbiased else distance_correlation
    found = SubspaceDependenceLoss([4, 1, 3], unbiased=unbiased, weight=3.0)(codes)
    expected = torch.stack([form(codes[s], codes[t]) for s, t in ((0, 1), (0, 2), (1, 2))]).mean()
    torch.testing.assert_close(found["dependence"], expected)
    torch.testing.assert_close(found["loss"], 3 * expected)
    assert found["effective_rank_1"].item() == pytest.approx(1)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.usefixtures("small_blocks")
def test_memory(unbiased):
    sizes, steps = (4, 2), 5
    loss = SubspaceDependenceLoss(sizes, 16, unbiased, spread=0.5, rank=4.0).double()
    whole = SubspaceDependenceLoss(sizes, 0, unbiased, spread=0.5, rank=4.0)
    batches = [[normal(10 * k + s, 8, d) for s, d in enumerate(sizes)] for k in range(steps)]
    for k, batch in enumerate(batches):
        live = [part.clone().requires_grad_() for part in batch]
        value = loss(live)["loss"]
        value.backward()
        joint = [batch, *reversed(batches[max(0, k - 2) : k])]  # the newest first
        rows = [torch.cat([b[s] for b in joint]).requires_grad_() for s in range(2)]
        expected = whole(rows)["loss"]
        expected.backward()
        torch.testing.assert_close(value, len(joint) * expected, rtol=1e-12, atol=1e-12)
        for mine, theirs in zip(live, rows, strict=True):
            torch.testing.assert_close(
                mine.grad, len(joint) * theirs.grad[:8], rtol=1e-10, atol=1e-12
            )
    assert loss.filled == 16


def test_memory_is_saved_and_belongs_to_training():
    loss = SubspaceDependenceLoss([2, 2], memory=20)
    codes = [normal(k, 6, 2, dtype=torch.float32) for k in range(2)]
    assert loss(codes)["loss"] == 0  # too few
    assert loss(codes)["dependence"] != 0
    restored = SubspaceDependenceLoss([2, 2], memory=20)
    restored.load_state_dict(loss.state_dict())
    assert restored.filled == 12
    assert torch.equal(restored(codes)["loss"], loss(codes)["loss"])
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    many = [normal(k, 30, 2, dtype=torch.float32) for k in range(2)]
    expected = u_distance_correlation_sqr(*many)
    assert torch.equal(loss.eval()(many)["loss"], expected)
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


def test_memory_takes_no_codes_that_are_not_finite():
    loss = SubspaceDependenceLoss([2, 2], memory=20)
    codes = [normal(k, 10, 2, dtype=torch.float32) for k in range(2)]
    codes[1][3, 0] = float("inf")
    assert loss(codes)["loss"].isnan()
    assert loss.filled == 9
    assert loss.past.isfinite().all()


def test_given_the_label():
    """Two subspaces tell of one label and of nothing else: independent within its classes."""
    label = torch.arange(120) % 3
    codes = [5 * label[:, None] + normal(k, 120, 2) for k in range(2)]
    plain = SubspaceDependenceLoss([2, 2])(codes)["loss"]
    within = SubspaceDependenceLoss([2, 2])(codes, label)["loss"]
    assert plain > 0.8
    assert abs(within) < 0.1
    expected = [u_distance_correlation_sqr(*(c[label == k] for c in codes)) for k in range(3)]
    torch.testing.assert_close(within, torch.stack(expected).mean())
    unknown = torch.where(label == 2, -1, label)
    found = SubspaceDependenceLoss([2, 2])(codes, unknown)["loss"]
    torch.testing.assert_close(found, torch.stack(expected[:2]).mean())


def test_given_covariates(dcor):
    age, sex = normal(0, 150, 1), (normal(1, 150, 1) > 0).double()
    codes = [torch.cat([age, 2 * sex], 1) + 0.3 * normal(k, 150, 2) for k in (2, 3)]
    plain = SubspaceDependenceLoss([2, 2])(codes)["loss"]
    one = SubspaceDependenceLoss([2, 2], covariates=1)(codes, covariates=age)["loss"]
    expected = dcor.partial_distance_correlation(*(part.numpy() for part in (*codes, age)))
    assert one.item() == pytest.approx(expected, abs=1e-8)
    both = torch.cat([age, sex], 1)
    loss = SubspaceDependenceLoss([2, 2], covariates=2)
    found = loss(codes, covariates=both)["loss"]
    assert found < 0.15 < 0.8 < one < plain
    both[::2] = float("nan")
    halves = loss([part[1::2] for part in codes], covariates=both[1::2])["loss"]
    torch.testing.assert_close(loss(codes, covariates=both)["loss"], halves)
    again = SubspaceDependenceLoss([2, 2], covariates=3)  # a copy and a constant change nothing
    table = torch.cat([age, 2 * age, torch.ones_like(age)], 1)
    torch.testing.assert_close(again(codes, covariates=table)["loss"], one)


def test_gradient_given_covariates_and_label():
    label, covariates = torch.arange(16) % 2, normal(9, 16, 2)
    loss = SubspaceDependenceLoss([2, 3], covariates=2, spread=0.3, rank=3.0)
    codes = [normal(k, 16, d).requires_grad_() for k, d in enumerate((2, 3))]
    assert torch.autograd.gradcheck(lambda *z: loss(z, label, covariates)["loss"], codes)


def test_effective_rank():
    codes = torch.eye(4).repeat(2, 1)
    codes = torch.cat([codes, -codes])
    assert effective_rank(codes).item() == pytest.approx(4)
    assert effective_rank(1e-20 * codes + 3).item() == pytest.approx(0)  # no digits are left
    assert effective_rank(1e-20 * codes).item() == pytest.approx(4)
    line = normal(0, 30, 1) * torch.tensor([[1.0, 2.0, -3.0]]) + 5
    assert effective_rank(line).item() == pytest.approx(1)
    constant = torch.ones(5, 2, requires_grad=True)
    effective_rank(constant).backward()
    assert not constant.grad.any()
    x = normal(1, 20, 5)
    weights = torch.linalg.eigvalsh(x.T.cov()) / torch.linalg.eigvalsh(x.T.cov()).sum()
    assert effective_rank(x) <= torch.exp(-(weights * weights.log()).sum())
    assert torch.autograd.gradcheck(effective_rank, x.requires_grad_())


def test_live_rows_only():
    x, y = normal(0, 30, 3).requires_grad_(), normal(1, 30, 2).requires_grad_()
    correlations([x, y], live=None)[0, 1].backward()
    whole = x.grad.clone()
    x.grad = None
    correlations([x, y], live=11)[0, 1].backward()
    torch.testing.assert_close(x.grad[:11], whole[:11])
    assert not x.grad[11:].any()


def weighted_by_hand(x, y, weights):
    """R with distances freed of r_i + r_j by least squares over the pairs, in float64."""
    first, second = torch.triu_indices(len(x), len(x), 1)
    root = (weights[first] * weights[second]).sqrt()
    design = torch.zeros(len(first), len(x), dtype=x.dtype)
    design[range(len(first)), first] = design[range(len(first)), second] = root
    rest = []
    for z in (x, y):
        wanted = root * (z[first] - z[second]).norm(dim=1)
        rest.append(wanted - design @ torch.linalg.lstsq(design, wanted[:, None]).solution[:, 0])
    return rest[0] @ rest[1] / (rest[0].norm() * rest[1].norm())


@pytest.mark.usefixtures("small_blocks")
def test_weighted_rows():
    x, y = normal(0, 30, 3).requires_grad_(), normal(1, 30, 2).requires_grad_()
    with torch.no_grad():
        y[:, 0] += x[:, 0]
    weights = 1 + normal(2, 30).square()

    def form(x, y):
        return correlations([x, y], weights=weights)[0, 1]

    torch.testing.assert_close(form(x, y), weighted_by_hand(x.detach(), y.detach(), weights))
    assert torch.autograd.gradcheck(form, (x, y))
    even = correlations([x, y], weights=torch.full((30,), 3.0))[0, 1]
    torch.testing.assert_close(even, u_distance_correlation_sqr(x, y))


def drawn_again(subjects, known, memory, steps=60, batch=16, chances=None, **settings):
    """Mean R of independent codes of some subjects that are drawn with replacement."""
    torch.manual_seed(0)
    loss, found = SubspaceDependenceLoss([2, 3], memory, **settings), []
    for _ in range(steps):  # other codes each time: the mean over cohorts, not R of one
        loss.filled.zero_()
        codes = [torch.randn(subjects, size) for size in (2, 3)]
        for _ in range(1 + memory // batch):
            rows = torch.multinomial(
                torch.ones(subjects) if chances is None else chances, batch, True
            )
            moved = [part[rows] + 0.05 * torch.randn(batch, part.shape[1]) for part in codes]
            terms = loss(moved, subject=rows if known else None)
        found.append(float(terms["dependence"]))
    return np.mean(found), np.std(found) / steps**0.5


@pytest.mark.parametrize(("subjects", "memory"), [(30, 0), (60, 64), (20, 64)])
@pytest.mark.parametrize("rare", [1.0, 10.0])
def test_subjects_that_come_again_are_no_dependence(subjects, memory, rare):
    """In a batch, in the memory, and where the memory is larger than the data set."""
    chances = torch.ones(subjects)
    chances[::4] = rare
    value, error = drawn_again(subjects, True, memory, chances=chances)
    assert abs(value) < 3 * error + 1e-3
    twice, error = drawn_again(subjects, False, memory, chances=chances)
    assert twice > 0.03 + 3 * error


def test_the_newest_row_of_a_subject_counts_for_all_and_balance_stays():
    loss = SubspaceDependenceLoss([2, 2], memory=40)
    old, new = [normal(k, 24, 2) for k in (0, 1)], [normal(k, 16, 2) for k in (2, 3)]
    loss(old, subject=torch.arange(24))
    subject = torch.tensor([*range(8), 0, 1, *range(30, 36)])
    live = [part.clone().requires_grad_() for part in new]
    terms = loss(live, subject=subject)
    terms["loss"].backward()
    first = [k for k in range(16) if k not in (8, 9)]
    rows = [torch.cat([n[first], o[8:]]) for n, o in zip(new, old, strict=True)]
    weights = torch.tensor([3.0, 3, *[2] * 6, *[1] * 22])
    expected = weighted_by_hand(*(part.double() for part in rows), weights.double())
    assert terms["dependence"].item() == pytest.approx(float(expected), abs=1e-5)
    assert terms["loss"].item() == pytest.approx(40 / 24 * float(expected), abs=1e-5)
    assert not live[0].grad[8:10].any()
    assert live[0].grad[first].abs().min() > 0
    again = SubspaceDependenceLoss([2, 2], memory=40)
    again.load_state_dict(loss.state_dict())  # whose the rows are, too
    assert torch.equal(again(new, subject=subject)["loss"], loss(new, subject=subject)["loss"])


def test_rows_of_unknown_subjects_and_the_published_form_count_each():
    codes = [normal(k, 20, 2) for k in range(2)]
    unknown, same = torch.full((20,), -1), torch.arange(20) // 2
    for unbiased in (True, False):
        loss = SubspaceDependenceLoss([2, 2], unbiased=unbiased)
        assert torch.equal(loss(codes, subject=unknown)["loss"], loss(codes)["loss"])
    assert torch.equal(loss(codes, subject=same)["loss"], loss(codes)["loss"])


def test_a_missing_label_is_missing_for_its_own_target_alone():
    """Half of the rows know the one label and half the other: no row knows both."""
    x, label = normal(0, 80, 2), (torch.arange(80) % 2).double()
    targets = torch.stack([label, label], 1)
    targets[:40, 0] = targets[40:, 1] = float("nan")
    loss = SubspaceDependenceLoss([2, 2, 2], targets=[1, 1], target_weight=1.0)
    third = label[:, None] + 0.1 * normal(1, 80, 2)
    found = loss([x, x, third], targets=targets)
    pairs = [(x, x), (x, third), (x, third)]
    among = torch.stack([u_distance_correlation_sqr(*pair) for pair in pairs]).mean()
    torch.testing.assert_close(found["dependence"], among)
    assert found["dependence"] > 0.3
    halves = {0: slice(40, 80), 1: slice(0, 40)}
    across = [
        u_distance_correlation_sqr(z[halves[t]], label[halves[t], None])
        for t in (0, 1)
        for s, z in enumerate((x, x, third))
        if s != t
    ]
    torch.testing.assert_close(found["target_dependence"], torch.stack(across).mean())
    without = SubspaceDependenceLoss([2, 2, 2], targets=[1, 1])
    skipped = without([x, x, third], targets=targets)
    torch.testing.assert_close(skipped["loss"], among)
    assert "target_dependence" not in skipped


def train(mine, sizes=(2, 3)):
    """Return the values and the summed gradients of a few steps with a memory."""
    drawn = (torch.arange(36) * 7 % 20).split(12)  # subjects, some again
    loss = SubspaceDependenceLoss(sizes, memory=20, spread=0.1, rank=3.0)
    values, grads = [], []
    for step in range(3):
        codes = [normal(7 * step + s, 12, d)[mine].requires_grad_() for s, d in enumerate(sizes)]
        label, subject = (torch.arange(12) % 2)[mine], drawn[step][mine]
        value = loss(codes, label=label, subject=subject)["loss"]
        value.backward()
        values.append(value.detach())
        grads.append([part.grad for part in codes])
    return values, grads


def test_two_ranks_are_one_with_the_joint_batch(tmp_path: Path):
    ranks = of_two_ranks(lambda rank: train(slice(6 * rank, 6 * rank + 6)), tmp_path)
    values, grads = train(slice(None))
    for step in range(3):
        torch.testing.assert_close(ranks[0][0][step], values[step])
        torch.testing.assert_close(ranks[1][0][step], values[step])
        for s in range(2):
            joint = torch.cat([ranks[rank][1][step][s] for rank in range(2)])
            torch.testing.assert_close(joint, 2 * grads[step][s])  # which the mean of ranks halves


def test_whitening_makes_the_loss_blind_to_linear_maps():
    torch.manual_seed(0)
    codes = [torch.randn(80, size, dtype=torch.float64) for size in (3, 4)]
    codes[1][:, 0] += codes[0][:, 1].square()
    loss = SubspaceDependenceLoss([3, 4], whiten=True)
    turned = [codes[0] @ torch.randn(3, 3, dtype=torch.float64) + 5, codes[1]]
    before, after = loss(codes)["dependence"], loss(turned)["dependence"]
    torch.testing.assert_close(before, after, rtol=0.05, atol=1e-3)
    plain = SubspaceDependenceLoss([3, 4])
    assert (plain(codes)["dependence"] - plain(turned)["dependence"]).abs() > 0.005


def test_whitening_sees_what_a_narrow_direction_tells():
    torch.manual_seed(0)
    wide, told = torch.randn(300, 1), torch.randn(300, 1)
    codes = [torch.cat([wide, 0.1 * told], 1), told]
    seen = SubspaceDependenceLoss([2, 1], whiten=True)(codes)["dependence"]
    unseen = SubspaceDependenceLoss([2, 1])(codes)["dependence"]
    assert unseen < 0.05
    assert seen > 0.3


def test_whitened_codes_are_uncorrelated_of_unit_variance():
    torch.manual_seed(0)
    codes = torch.randn(200, 4, dtype=torch.float64) @ torch.randn(4, 4, dtype=torch.float64) + 3
    white = whitened(codes, ridge=0.0)
    torch.testing.assert_close(white.T @ white / 200, torch.eye(4, dtype=torch.float64))
    assert whitened(torch.full((5, 2), 7.0)).abs().max() == 0
    gradient = torch.autograd.functional.jacobian(
        lambda scale: whitened(scale * codes[:6]), torch.ones((), dtype=torch.float64)
    )
    assert gradient.abs().max() < 1e-8


def test_the_whitened_gradient_is_that_of_all_rows():
    torch.manual_seed(0)
    loss = SubspaceDependenceLoss([2, 2], whiten=True, memory=12).double()
    past = torch.randn(12, 4, dtype=torch.float64)
    loss(list(past.split(2, 1)))
    codes = torch.randn(10, 4, dtype=torch.float64, requires_grad=True)

    def value(live):
        loss.past[:12, :4], loss.filled = past, torch.tensor(12)
        return loss(list(live.split(2, 1)))["loss"]

    assert torch.autograd.gradcheck(value, codes)
