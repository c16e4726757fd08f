"""Which attributes a search chooses, on generators whose causes are planted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from test_attfind import Planted, seeded
from torch import Tensor, nn

from medvae.explain import StyleEffects, attfind
from medvae.networks.stylex import log_probabilities, shown
from medvae.report import StylexSearch


class Reading(nn.Module):
    """Numbers (B, O) that are sums of an image's patterns, some weights of each by its number."""

    def __init__(self, generator: Planted, weights: list[dict[int, float]]) -> None:
        super().__init__()
        table = torch.zeros(len(weights), len(generator.patterns))
        for row, planted in enumerate(weights):
            for coordinate, weight in planted.items():
                table[row, coordinate] = weight
        self.register_buffer("table", table @ generator.patterns.flatten(1))

    def forward(self, image: Tensor) -> Tensor:
        return image.flatten(1) @ self.table.T


def searching(
    weights: list[dict[int, float]], unreal: dict[int, float], styles: Tensor, **options: Any
) -> tuple[StylexSearch, StyleEffects, Any]:
    """A search of a classifier of one head, what it found, and its images.

    Args:
        weights: of the coordinates in each of the classifier's outputs.
        unreal: of the coordinates in the discriminator's score.
        styles: of the images.
        options: of `StylexSearch`, and `quantiles`.
    """
    generator = Planted(2)
    generator.patterns *= 0.1  # so that no image is cut where it is shown
    reading, score = Reading(generator, weights), Reading(generator, [unreal])
    heads = {"task": len(weights)}
    network: Any = SimpleNamespace(
        heads=heads,
        generator=generator,
        probabilities=lambda logits: log_probabilities(logits).exp(),
        discriminator=lambda image, _: 100 * score(image),
    )

    def classifier(image: Tensor) -> Tensor:
        return 400 * reading(image - 0.5)  # twice 0.1 is undone, and half of it by what is shown

    quantiles = options.pop("quantiles", (0.0, 1.0))
    stubs: dict[str, Any] = {  # of what only a whole run asks
        "factors": SimpleNamespace(cohort=SimpleNamespace(attribute_names=())),
        "classifier": classifier,
        "prepare_batch": None,
    }
    run = StylexSearch(network, **stubs, train=[], search=[], test=[], output_dir="", **options)
    effects = attfind(
        generator, lambda x: classifier(shown(x)), styles, heads, quantiles, progress=False
    )
    return run, effects, SimpleNamespace(ids=[str(n) for n in range(len(styles))], styles=styles)


def drawn(images: int = 60) -> Tensor:
    return torch.rand(images, 64, generator=seeded(2)) * 2 - 1


def test_every_class_of_several_has_its_attribute():
    causes = {7: 0, 40: 1, 12: 2}
    weights: list[dict[int, float]] = [{7: 3.0}, {40: 3.0}, {12: 3.0}]
    run, effects, found = searching(weights, {}, drawn())
    attributes = run._attributes(effects, run._edits(effects, found))
    coordinates = [edit.coordinate for edit, _ in attributes]
    assert sorted(coordinates) == sorted(causes)  # each once, though it moves all classes
    scores = [edit.score for edit, _ in attributes]
    assert scores == sorted(scores, reverse=True)
    for edit, target in attributes:
        change = effects.change("task")[:, edit.direction, edit.coordinate, target]
        assert change.mean() > 0
        assert edit.direction == (target == causes[edit.coordinate])


def test_a_rejected_coordinate_does_not_come_back_and_its_successor_is_judged():
    styles = drawn()
    weights: list[dict[int, float]] = [{}, {7: 3.0, 40: 2.0, 12: 1.0}]
    chosen = {"count": 1, "quantiles": (0.3, 1.0)}
    run, effects, found = searching(weights, {}, styles, **chosen)
    assert [edit.coordinate for edit in run._edits(effects, found)[1]] == [7]
    # raised from the least value they change the score by 2, lowered to the quantile by 1.3
    unreal = {7: 1.0, 40: 1.0}
    run, effects, found = searching(weights, unreal, styles, artefact_limit=1.6, **chosen)
    lists = run._edits(effects, found)
    assert [(e.direction, e.coordinate) for e in lists[1]] == [(1, 12)]
    assert [(e.direction, e.coordinate) for e in lists[0]] == [(0, 12)]
    unreal = dict.fromkeys(range(64), 1.0)
    run, effects, found = searching(weights, unreal, styles, artefact_limit=0.1, **chosen)
    assert run._edits(effects, found) == {0: [], 1: []}


def test_edits_are_judged_both_ways():
    # lowered to the median the coordinate changes the score by 1, raised from the least value by 2
    weights: list[dict[int, float]] = [{7: -6.0}, {40: 3.0}, {12: 3.0}]
    options = {"count": 1, "quantiles": (0.5, 1.0)}
    for limit, kept in ((2.5, True), (1.5, False)):
        run, effects, found = searching(weights, {7: 1.0}, drawn(), artefact_limit=limit, **options)
        (edit,) = run._edits(effects, found)[0]
        assert (edit.coordinate == 7) == kept
        assert edit.direction == 0
