"""One iteration of training StylEx: the discriminator, then the generator with its encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from medvae.engines.adversarial import Terms, check_images, due, move_average, update
from medvae.losses import (
    ClassConsistency,
    PathLength,
    ReconstructionLoss,
    discriminator_loss,
    generator_loss,
    r1_penalty,
)
from medvae.networks.stylex import StylEx

__all__ = ["StylexStep"]

TERMS = {
    "d": ("adversarial", "r1"),
    "g": ("adversarial", "voxels", "perceptual", "codes", "consistency", "path"),
}


class Generated(NamedTuple):
    """Images and what they were generated from.

    Attributes:
        w: one for each layer, shape (B, L, D + K).
        image: shape (B, C, *S), in [-1, 1].
        codes: of the real images, shape (B, D); None where codes were drawn.
    """

    w: Tensor
    image: Tensor
    codes: Tensor | None


class StylexStep:
    r"""One iteration, for `monai.engines.Trainer(iteration_update=...)` (Lang et al. 2021).

    With x real images, p = C(x) the classifier's probabilities, E the encoder, M the mapping
    network and w = E(x), or w = M(z) with the same p, alternately, and x' = G(w, p), the
    discriminator minimises

    .. math:: \tfrac12 [\operatorname{softplus} D(x', p) + \operatorname{softplus}(-D(x, p))]
        + \tfrac{\gamma}{2} R_1

    and then the generator with encoder and mapping network

    .. math:: \operatorname{softplus}(-D(x', p)) + L_{rec}(x, x')
        + \lambda_C \operatorname{KL}(C(x), C(x')) + \lambda_{PL} L_{PL}

    whose reconstruction and consistency are of encoded images alone. R1 and the path length are
    computed every few iterations, with their weight times the interval, and in float32.

    Args:
        network: becomes the running average of encoder and generator; its discriminator is the
            one that is trained.
        trained: a copy of the network.
        classifier: frozen, images (B, C, *S) in [0, 1] to logits (B, O).
        optimizer_d: of the copy's discriminator.
        optimizer_g: of the copy's generator and encoder.
        reconstruction: L_rec.
        consistency: of the classifier.
        path_length: None: none.
        consistency_weight: lambda_C.
        r1_weight: gamma; it belongs to a sum over voxels.
        r1_interval: iterations from one R1 to the next.
        path_weight: lambda_PL.
        path_interval: iterations from one path length to the next.
        inputs: "alternate", beginning with drawn codes, or "encoder": drawn codes never come.
        half_life: images after which a network counts half in the running average, shorter in the
            beginning; 0: the average is the last one.
        autocast: a half precision such as `torch.bfloat16` for the networks' passes.

    Raises:
        ValueError: for other inputs.
    """

    def __init__(
        self,
        network: StylEx,
        trained: StylEx,
        classifier: nn.Module,
        optimizer_d: torch.optim.Optimizer,
        optimizer_g: torch.optim.Optimizer,
        reconstruction: ReconstructionLoss,
        consistency: ClassConsistency,
        path_length: PathLength | None = None,
        consistency_weight: float = 1.0,
        r1_weight: float = 10.0,
        r1_interval: int = 16,
        path_weight: float = 2.0,
        path_interval: int = 4,
        inputs: Literal["alternate", "encoder"] = "alternate",
        half_life: float = 10_000,
        autocast: torch.dtype | None = None,
    ) -> None:
        if inputs not in ("alternate", "encoder"):
            raise ValueError(f"inputs is {inputs!r}, expected 'alternate' or 'encoder'")
        self.network, self.trained, self.classifier = network, trained, classifier
        self.optimizer_d, self.optimizer_g = optimizer_d, optimizer_g
        self.reconstruction, self.consistency = reconstruction, consistency
        self.path_length, self.consistency_weight = path_length, consistency_weight
        self.r1_weight, self.r1_interval = r1_weight, r1_interval
        self.path_weight, self.path_interval = path_weight, path_interval
        self.inputs, self.half_life, self.autocast = inputs, half_life, autocast

    def __call__(self, engine: Any, batchdata: Mapping[str, Any]) -> list[Terms]:
        """Update the networks once; return the weighted terms of both losses, detached.

        Returns:
            A list of one dictionary, as of `GanStep`: a term that is not due is 0.

        Raises:
            CohortError: where an image is not finite.
            FloatingPointError: where a term is not finite.
        """
        image, _ = engine.prepare_batch(
            batchdata, engine.state.device, engine.non_blocking, **engine.to_kwargs
        )
        check_images(image, batchdata)
        iteration = engine.state.iteration
        self.network.train()
        self.trained.train()
        with torch.no_grad():
            logits = self.classifier(image)
            probabilities = self.trained.probabilities(logits)
        image = 2 * image - 1
        smooth = self.path_length is not None and due(iteration, self.path_interval)
        encoded = self.inputs == "encoder" or iteration % 2 == 0
        made = self.generate(image, probabilities, encoded, exact=smooth)
        penalised = self.r1_weight > 0 and due(iteration, self.r1_interval)
        terms = self.discriminator_terms(image, made, probabilities, penalised)
        output = update(self.optimizer_d, terms, "d", TERMS, engine)
        terms = self.generator_terms(image, made, probabilities, logits, smooth)
        output |= update(self.optimizer_g, terms, "g", TERMS, engine)
        self.average(len(image), iteration)
        return [{"loss": torch.stack(list(output.values())).sum(), **output}]

    def generate(
        self, image: Tensor, probabilities: Tensor, encoded: bool, exact: bool = False
    ) -> Generated:
        """Generate from the codes of images (B, C, *S) in [-1, 1], or from as many drawn ones.

        Args:
            image: real images.
            probabilities: of the real images, shape (B, K), joined to either code.
            encoded: whether codes are those of the images.
            exact: whether in float32, whatever `autocast` says.
        """
        generator = self.trained.generator
        with self._precision(image, exact):
            if encoded:
                codes = self.trained.encoder(image)
                code = codes
            else:
                z = torch.randn(len(image), self.trained.latent_dim, device=image.device)
                codes, code = None, generator.mapping(z)
                generator.update_mean_code(code)
            w = torch.cat([code, probabilities.to(code.dtype)], 1)
            w = w[:, None].expand(-1, generator.layers, -1)
            return Generated(w, generator.synthesis(w), codes)

    def discriminator_terms(
        self, image: Tensor, made: Generated, probabilities: Tensor, penalised: bool = False
    ) -> Terms:
        """Return the weighted terms of the discriminator's loss.

        Args:
            image: real, in [-1, 1], shape (B, C, *S).
            made: what `generate` gave.
            probabilities: of the real images, shape (B, K).
            penalised: whether R1 is due.
        """
        judge = self.trained.discriminator
        image = image.detach().requires_grad_(penalised)
        with self._precision(image, penalised):
            real = judge(image, probabilities)
        with self._precision(image):
            fake = judge(made.image.detach(), probabilities)
        terms = {"adversarial": discriminator_loss(real, fake)}
        if penalised:
            terms["r1"] = self.r1_weight / 2 * self.r1_interval * r1_penalty(real, image)
        return terms

    def generator_terms(
        self,
        image: Tensor,
        made: Generated,
        probabilities: Tensor,
        logits: Tensor,
        smooth: bool = False,
    ) -> Terms:
        """Return the weighted terms of the loss of generator and encoder.

        Args:
            image: real, in [-1, 1], shape (B, C, *S).
            made: what `generate` gave.
            probabilities: of the real images, shape (B, K).
            logits: the classifier's of the real images, shape (B, O).
            smooth: whether the path length is due.
        """
        with self._precision(image):
            fake = self.trained.discriminator(made.image, probabilities)
        terms = {"adversarial": generator_loss(fake)}
        if made.codes is not None:
            with self._precision(image):
                again = self.trained.encoder(made.image)
            terms |= self.reconstruction(image, made.image, made.codes, again)
            terms["consistency"] = self.consistency_weight * self.consistency(
                logits, self.classifier((made.image.float() + 1) / 2)
            )
        if smooth and self.path_length is not None:
            length = self.path_length(made.image, made.w)
            terms["path"] = self.path_weight * self.path_interval * length
        return terms

    @torch.no_grad()
    def average(self, count: int, iteration: int) -> None:
        """Move the network towards the trained one, after `count` images a rank."""
        for name in ("encoder", "generator"):
            mean, network = getattr(self.network, name), getattr(self.trained, name)
            move_average(mean, network, self.half_life, count, iteration)
        self.network.generator.mean_code.copy_(self.trained.generator.mean_code)
        self.network.discriminator.load_state_dict(self.trained.discriminator.state_dict())

    def _precision(self, image: Tensor, exact: bool = False) -> torch.autocast:
        enabled = self.autocast is not None and not exact
        return torch.autocast(image.device.type, self.autocast, enabled=enabled)
