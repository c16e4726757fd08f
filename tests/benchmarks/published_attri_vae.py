"""The published Attri-VAE, rebuilt plainly, as the peer that speed and precision are measured by.

Network, losses and optimiser follow the published description (Cetin et al., Comput. Med. Imaging
Graph. 104, 2023; layer table as executed by its authors): default memory format, torch's own
BatchNorm, one loop over attributes, summed squared error and an L1 penalty on every parameter.
``log_std`` is named after what it is; the authors call it a log variance.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LATENT_DIM = 64
NUM_ATTRIBUTES = 16


class PublishedOutput(NamedTuple):
    """Reconstruction (B, 1, 80, 80, 80), mean, log_std and z (B, 64), class probability (B, 1)."""

    reconstruction: Tensor
    mean: Tensor
    log_std: Tensor
    z: Tensor
    probability: Tensor


class PublishedAttriVAE(nn.Module):
    """The network for 1x80^3 volumes: 340,676 parameters, two of them never used."""

    def __init__(self, dropout: float = 0.25) -> None:
        super().__init__()
        # encoder
        self.conv1_enc = nn.Conv3d(1, 8, 3, stride=2, padding=1)
        self.bn1_enc = nn.BatchNorm3d(8)
        self.conv2_enc = nn.Conv3d(8, 16, 3, stride=2, padding=1)
        self.bn2_enc = nn.BatchNorm3d(16)
        self.conv3_enc = nn.Conv3d(16, 32, 3, stride=2, padding=1)
        self.bn3_enc = nn.BatchNorm3d(32)
        self.conv4_enc = nn.Conv3d(32, 64, 3, stride=2, padding=1)
        self.bn4_enc = nn.BatchNorm3d(64)
        self.conv5_enc = nn.Conv3d(64, 2, 3, stride=1, padding=1)
        self.bn5_enc = nn.BatchNorm3d(2)
        self.dropout = nn.Dropout(dropout)
        self.fc1 = nn.Linear(250, 128)
        self.fc2 = nn.Linear(128, 96)
        self.fc_mean = nn.Linear(96, LATENT_DIM)
        self.fc_log_std = nn.Linear(96, LATENT_DIM)
        # classifier
        self.mlp1 = nn.Linear(LATENT_DIM, 32)
        self.bn1_mlp = nn.BatchNorm1d(32)
        self.mlp2 = nn.Linear(32, 16)
        self.bn2_mlp = nn.BatchNorm1d(16)
        self.mlp3 = nn.Linear(16, 1)
        # decoder
        self.fc_dec = nn.Linear(LATENT_DIM, 250)
        self.conv1_dec = nn.Conv3d(2, 64, 3, padding=1)
        self.bn1_dec = nn.BatchNorm3d(64)
        self.deconv1 = nn.ConvTranspose3d(64, 64, 3, stride=2, padding=1, output_padding=1)
        self.bn2_dec = nn.BatchNorm3d(64)
        self.deconv2 = nn.ConvTranspose3d(64, 32, 3, stride=2, padding=1, output_padding=1)
        self.bn3_dec = nn.BatchNorm3d(32)
        self.deconv3 = nn.ConvTranspose3d(32, 16, 3, stride=2, padding=1, output_padding=1)
        self.bn4_dec = nn.BatchNorm3d(16)
        self.deconv4 = nn.ConvTranspose3d(16, 8, 3, stride=2, padding=1, output_padding=1)
        self.bn5_dec = nn.BatchNorm3d(8)
        self.conv2_dec = nn.Conv3d(8, 4, 3, padding=1)
        self.bn6_dec = nn.BatchNorm3d(4)
        self.conv3_dec = nn.Conv3d(4, 1, 3, padding=1)
        self.bn7_dec = nn.BatchNorm3d(1)  # published, never called
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.constant_(module.bias, 0.01)
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.bn1_enc(self.conv1_enc(x)))
        x = F.relu(self.bn2_enc(self.conv2_enc(x)))
        x = F.relu(self.bn3_enc(self.conv3_enc(x)))
        x = F.relu(self.bn4_enc(self.conv4_enc(x)))
        x = F.relu(self.bn5_enc(self.conv5_enc(x)))
        x = self.dropout(x.reshape(x.shape[0], -1))
        x = F.relu(self.fc2(F.relu(self.fc1(x))))
        return self.fc_mean(x), self.fc_log_std(x)

    def classify(self, z: Tensor) -> Tensor:
        x = F.relu(self.bn1_mlp(self.mlp1(z)))
        x = F.relu(self.bn2_mlp(self.mlp2(x)))
        return torch.sigmoid(self.mlp3(x))

    def decode(self, z: Tensor) -> Tensor:
        x = F.relu(self.fc_dec(z)).view(-1, 2, 5, 5, 5)
        x = F.relu(self.bn1_dec(self.conv1_dec(x)))
        x = F.relu(self.bn2_dec(self.deconv1(x)))
        x = F.relu(self.bn3_dec(self.deconv2(x)))
        x = F.relu(self.bn4_dec(self.deconv3(x)))
        x = F.relu(self.bn5_dec(self.deconv4(x)))
        x = F.relu(self.bn6_dec(self.conv2_dec(x)))
        return torch.sigmoid(self.conv3_dec(x))

    def forward(self, x: Tensor) -> PublishedOutput:
        mean, log_std = self.encode(x)
        z = mean + log_std.exp() * torch.randn_like(mean)
        return PublishedOutput(self.decode(z), mean, log_std, z, self.classify(z))


def published_attribute_loss(z: Tensor, attributes: Tensor, delta: float) -> Tensor:
    """Pairwise ranking term of (B, K) codes and attributes, one attribute after the other."""
    loss = z.new_zeros(())
    for k in range(attributes.shape[1]):
        code = z[:, k].view(-1, 1).repeat(1, z.shape[0])
        truth = attributes[:, k].view(-1, 1).repeat(1, z.shape[0])
        predicted_order = torch.tanh((code - code.t()) * delta)
        true_order = torch.sign(truth - truth.t())
        loss = loss + F.l1_loss(predicted_order, true_order)
    return loss


def published_loss(
    network: nn.Module,
    output: PublishedOutput,
    image: Tensor,
    label: Tensor,
    attributes: Tensor,
    beta: float = 2.0,
    gamma: float = 10.0,
    delta: float = 100.0,
    l1: float = 5e-5,
) -> Tensor:
    """Sum of reconstruction, KL, class, attribute and L1 terms, by default with their weights."""
    reconstruction = F.mse_loss(output.reconstruction, image, reduction="sum") / len(image)
    posterior = torch.distributions.Normal(output.mean, output.log_std.exp())
    prior = torch.distributions.Normal(torch.zeros_like(output.mean), torch.ones_like(output.mean))
    kl = torch.distributions.kl_divergence(posterior, prior).sum(1).mean()
    classification = F.binary_cross_entropy(output.probability, label)
    attribute = published_attribute_loss(output.z[:, : attributes.shape[1]], attributes, delta)
    penalty = image.new_zeros(())
    for parameter in network.parameters():
        penalty = penalty + parameter.abs().sum()
    return reconstruction + beta * kl.abs() + classification + gamma * attribute + l1 * penalty


def published_optimizer(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(network.parameters(), lr=1e-4)
