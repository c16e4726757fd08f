"""One iteration of training the disentangled GAN: the discriminator, then the generator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from medvae.engines.adversarial import Terms, check_images, due, move_average, update
from medvae.engines.augment import DifferentiableAugmentation
from medvae.engines.steps import EvaluationStep
from medvae.losses import (
    PathLength,
    SubspaceLoss,
    discriminator_loss,
    generator_loss,
    r1_penalty,
)
from medvae.networks import DisentangledGAN
from medvae.networks.style_discriminator import DiscriminatorOutput

__all__ = ["GanEvaluationStep", "GanStep"]

TERMS = {
    "d": ("adversarial", "codes", "features", "voxels", "factors", "dependence", "r1"),
    "g": ("adversarial", "codes", "features", "voxels", "factors", "path"),
}


class Draw(NamedTuple):
    """Codes and the images generated from them.

    Attributes:
        w: one for each layer, shape (B, L, D).
        single: the code of all layers, (B, D); None where two were mixed.
        image: shape (B, C, *S), in [-1, 1].
    """

    w: Tensor
    single: Tensor | None
    image: Tensor


class GanStep:
    r"""One iteration, for `monai.engines.Trainer(iteration_update=...)` (Müller et al. 2025).

    With x real images, G the generator, D, F and E the discriminator's score, features and codes,
    w mapped normal codes, sg a stopped gradient, the discriminator minimises

    .. math:: \tfrac12 [\operatorname{softplus} D(G(w)) + \operatorname{softplus}(-D(x))]
        + \lambda_w |sg(w) - E(G(w))|^2 + \lambda_p |sg(F(x)) - F(G(E(x)))|^2
        + \lambda_v |x - G(E(x))| + \lambda_C L_C(E(x)) + L_{DC}(E(x)) + \tfrac{\gamma}{2} R_1

    and then the generator, with its mapping networks and the heads,

    .. math:: \operatorname{softplus}(-D(G(w)))
        + \lambda_w |sg(w) - E(G(w))|^2 + \lambda_p |F(x) - F(G(sg\,E(x)))|^2
        + \lambda_v |x - G(sg\,E(x))| + \lambda_C L_C(sg\,E(x)) + \lambda_{PL} L_{PL}

    Codes are compared on the prior, features on real images. Labels reach the generator through
    the codes alone. R1 and the path length are computed every few iterations, with their weight
    times the interval, from the passes that are made anyway, and in float32.

    Args:
        network: becomes the running average. An averaged generator needs the averaged encoder: with
            the last one, 3 dB of its reconstructions were lost.
        trained: a copy of the network.
        optimizer_d: of the copy's discriminator.
        optimizer_g: of the copy's generator and of its discriminator's heads.
        objective: of the codes of real images, L_C and L_DC; None: neither.
        path_length: a `medvae.losses.PathLength`; None: none.
        code_weight: of w, lambda_w.
        feature_weight: of the features, lambda_p.
        voxel_weight: of the mean absolute difference between image and reconstruction, lambda_v;
            0 as published, which leaves it open what of an image the code keeps.
        factor_weight: of the factors, lambda_C; the objective has the weight of the dependence.
        r1_weight: of R1, gamma; it belongs to a sum over voxels.
        r1_interval: iterations from one R1 to the next.
        path_weight: of the path length, lambda_PL.
        path_interval: iterations from one path length to the next.
        mixing: probability that the fine layers have another code than the coarse ones.
        swapping: probability that an iteration draws from the codes of real images, every subspace
            of another image of the batch, instead of from the prior: swapped images are then to
            look real, too, and to be read as what was swapped; 0 as published.
        half_life: images after which a network counts half in the running average, shorter in the
            beginning; 0: the average is the last one.
        augment: of what the discriminator sees; None: none.
        autocast: a half precision such as `torch.bfloat16` for the networks' passes.
        faithful: the published objective: F(x) has a gradient in the discriminator's step, and
            features are compared only where no codes were mixed.
    """

    def __init__(
        self,
        network: DisentangledGAN,
        trained: DisentangledGAN,
        optimizer_d: torch.optim.Optimizer,
        optimizer_g: torch.optim.Optimizer,
        objective: SubspaceLoss | None = None,
        path_length: PathLength | None = None,
        code_weight: float = 1.0,
        feature_weight: float = 2.0,
        voxel_weight: float = 0.0,
        factor_weight: float = 0.04,
        r1_weight: float = 0.1,
        r1_interval: int = 8,
        path_weight: float = 2.0,
        path_interval: int = 2,
        mixing: float = 0.5,
        swapping: float = 0.0,
        half_life: float = 10_000,
        augment: DifferentiableAugmentation | None = None,
        autocast: torch.dtype | None = None,
        faithful: bool = False,
    ) -> None:
        self.network, self.trained = network, trained
        self.generator, self.discriminator = trained.generator, trained.discriminator
        self.optimizer_d, self.optimizer_g = optimizer_d, optimizer_g
        self.objective, self.path_length = objective, path_length
        self.code_weight, self.feature_weight = code_weight, feature_weight
        self.voxel_weight, self.factor_weight = voxel_weight, factor_weight
        self.r1_weight, self.r1_interval = r1_weight, r1_interval
        self.path_weight, self.path_interval = path_weight, path_interval
        self.mixing, self.swapping = mixing, swapping
        self.half_life, self.augment = half_life, augment
        self.autocast, self.faithful = autocast, faithful

    def __call__(self, engine: Any, batchdata: Mapping[str, Any]) -> list[Terms]:
        """Update both networks once; return the weighted terms of both losses, detached.

        Returns:
            A list of one dictionary: what MONAI's handlers expect of decollated output. A term
            that is not due is 0, so that means over an epoch add up.

        Raises:
            CohortError: where an image is not finite.
            FloatingPointError: where a term is not finite.
        """
        image, targets = engine.prepare_batch(
            batchdata, engine.state.device, engine.non_blocking, **engine.to_kwargs
        )
        check_images(image, batchdata)
        image, iteration = 2 * image - 1, engine.state.iteration
        factors, subject = targets.get("factors"), targets.get("subject")
        self.network.train()
        self.trained.train()
        smooth = self.path_length is not None and due(iteration, self.path_interval)
        drawn = self.draw(image, exact=smooth)
        penalised = self.r1_weight > 0 and due(iteration, self.r1_interval)
        terms, logged = self.discriminator_terms(image, drawn, factors, penalised, subject)
        output = update(self.optimizer_d, terms, "d", TERMS, engine)
        terms = self.generator_terms(image, drawn, factors, smooth)
        output |= update(self.optimizer_g, terms, "g", TERMS, engine)
        self.average(len(image), iteration)
        return [{"loss": torch.stack(list(output.values())).sum(), **output, **logged}]

    def draw(self, like: Tensor, exact: bool = False) -> Draw:
        """Generate as many images as there are in `like`, (B, C, *S).

        Args:
            like: real images.
            exact: whether in float32, whatever `autocast` says, and from the prior.
        """
        layers = self.generator.layers
        if not exact and self.swapping and torch.rand((), device="cpu") < self.swapping:
            single = self._swap(like)
            w = single[:, None].expand(-1, layers, -1)
            with self._precision(like):
                return Draw(w, single, self.generator.synthesis(w))
        single = self._map(like)
        self.generator.update_mean_code(single)
        w = single[:, None].expand(-1, layers, -1)
        mixed = bool(torch.rand((), device="cpu") < self.mixing)
        if mixed:
            first = int(torch.randint(0 if self.faithful else 1, layers, (), device="cpu"))
            other = self._map(like)[:, None].expand(-1, layers, -1)
            w = torch.cat([w[:, :first], other[:, first:]], 1)
        with self._precision(like, exact):
            return Draw(w, None if mixed else single, self.generator.synthesis(w))

    def discriminator_terms(
        self,
        image: Tensor,
        drawn: Draw,
        factors: Tensor | None = None,
        penalised: bool = False,
        subject: Tensor | None = None,
    ) -> tuple[Terms, Terms]:
        """Return the weighted terms of the discriminator's loss, and what else to log.

        Args:
            image: real, in [-1, 1], shape (B, C, *S).
            drawn: what `draw` gave.
            factors: shape (B, K), NaN where missing; None: without the objective of the codes.
            penalised: whether R1 is due.
            subject: whose image each is, (B,); see `medvae.losses.SubspaceDependenceLoss`.
        """
        image = image.detach().requires_grad_(penalised)
        change = self._change(image)
        with self._precision(image, penalised):
            real = self.discriminator(change(image))
        with self._precision(image):
            fake = self.discriminator(self._change(image)(drawn.image.detach()))
        terms = {"adversarial": discriminator_loss(real.score, fake.score)}
        terms |= self._code_term(drawn, fake)
        if self._reconstructs(drawn):
            with self._precision(image), torch.set_grad_enabled(self.voxel_weight > 0):
                again = self.generator.synthesis(real.codes)
            target = real.features if self.faithful else real.features.detach()
            terms |= self._feature_term(again.detach(), change, target)
            terms |= self._voxel_term(again, image)
        logged: Terms = {}
        if self.objective is not None and factors is not None:
            logged = dict(self.objective(real, image, factors, subject))
            del logged["loss"]
            terms["factors"] = self.factor_weight * logged.pop("factors")
            if "weighted" in logged:
                terms["dependence"] = logged.pop("weighted")
        if penalised:
            penalty = r1_penalty(real.score, image)
            terms["r1"] = self.r1_weight / 2 * self.r1_interval * penalty
        return terms, logged

    def generator_terms(
        self, image: Tensor, drawn: Draw, factors: Tensor | None = None, smooth: bool = False
    ) -> Terms:
        """Return the weighted terms of the generator's loss.

        Args:
            image: real, in [-1, 1], shape (B, C, *S).
            drawn: what `draw` gave.
            factors: shape (B, K), NaN where missing; None: without the objective of the codes.
            smooth: whether the path length is due.
        """
        change = self._change(image)
        with self._precision(image):
            fake = self.discriminator(self._change(image)(drawn.image))
            with torch.no_grad():  # by the discriminator as it is now
                real = self.discriminator(change(image))
        terms = {"adversarial": generator_loss(fake.score)} | self._code_term(drawn, fake)
        if self._reconstructs(drawn):
            with self._precision(image):
                again = self.generator.synthesis(real.codes)
            terms |= self._feature_term(again, change, real.features)
            terms |= self._voxel_term(again, image)
        if self.objective is not None and factors is not None:
            logits = self.discriminator.heads(real.codes.float())
            found = self.objective.factor_loss(logits, factors)
            terms["factors"] = self.factor_weight * found["loss"]
        if smooth and self.path_length is not None:
            length = self.path_length(drawn.image, drawn.w)
            terms["path"] = self.path_weight * self.path_interval * length
        return terms

    @torch.no_grad()
    def average(self, count: int, iteration: int) -> None:
        """Move the network towards the trained one, after `count` images a rank."""
        move_average(self.network, self.trained, self.half_life, count, iteration)
        self.network.generator.mean_code.copy_(self.generator.mean_code)

    def _map(self, like: Tensor) -> Tensor:
        z = torch.randn(len(like), self.generator.subspaces.latent_dim, device=like.device)
        return self.generator.mapping(z)

    @torch.no_grad()
    def _swap(self, image: Tensor) -> Tensor:
        with self._precision(image):
            codes = self.discriminator(image).codes.float()
        parts = self.generator.subspaces.split(codes).values()
        return torch.cat([part[torch.randperm(len(part), device="cpu")] for part in parts], 1)

    def _code_term(self, drawn: Draw, fake: DiscriminatorOutput) -> Terms:
        if drawn.single is None:
            return {}
        return {"codes": self.code_weight * _mean_square(fake.codes, drawn.single.detach())}

    def _feature_term(
        self, again: Tensor, change: Callable[[Tensor], Tensor], target: Tensor
    ) -> Terms:
        if self.feature_weight == 0:
            return {}
        with self._precision(again):
            features = self.discriminator.features(change(again))
        return {"features": self.feature_weight * _mean_square(features, target)}

    def _voxel_term(self, again: Tensor, image: Tensor) -> Terms:
        if self.voxel_weight == 0:
            return {}
        return {"voxels": self.voxel_weight * (image.detach() - again.float()).abs().mean()}

    def _reconstructs(self, drawn: Draw) -> bool:
        wanted = self.feature_weight > 0 or self.voxel_weight > 0
        return wanted and (drawn.single is not None or not self.faithful)

    def _change(self, image: Tensor) -> Callable[[Tensor], Tensor]:
        return _unchanged if self.augment is None else self.augment.draw(image)

    def _precision(self, image: Tensor, exact: bool = False) -> torch.autocast:
        enabled = self.autocast is not None and not exact
        return torch.autocast(image.device.type, self.autocast, enabled=enabled)


class GanEvaluationStep(EvaluationStep):
    """One batch through a `DisentangledGAN` in evaluation, for `SupervisedEvaluator`.

    Returns `pred` (the reconstruction), `logits`, `mean` (the codes) and the targets of the batch.

    Args:
        inferers: see `EvaluationStep`, such as `swaps` by a `medvae.explain.SwapInferer`.
    """

    def _outputs(self, network: Any, image: Tensor) -> Terms:
        codes = network.encode(image)
        return {"pred": network.decode(codes), "logits": network.classify(codes), "mean": codes}


def _mean_square(found: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(found.float(), target.float())


def _unchanged(image: Tensor) -> Tensor:
    return image
