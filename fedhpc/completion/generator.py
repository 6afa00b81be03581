"""Completion by a small conditional generator in feature space: a conditional variational autoencoder (Sohn, Lee, Yan,
NeurIPS 2015) from one frozen encoder's global feature to the other's tokens, trained on a client's own pairs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedhpc.config.completion import GeneratorConfig


class TokenGenerator(nn.Module):
    """condition [B,C], code [B,Z] -> tokens [B,T,D], standardised."""

    def __init__(self, config: GeneratorConfig, condition: int, tokens: int, width: int) -> None:
        super().__init__()
        hidden, code = config.hidden, config.noise
        self.code = code
        self.encoder = nn.Sequential(nn.Linear(condition + width, hidden), nn.ReLU(), nn.Linear(hidden, 2 * code))
        self.trunk = nn.Sequential(nn.Linear(condition + code, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.position = nn.Parameter(torch.randn(tokens, hidden) * 0.02)
        self.out = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self, condition: Tensor, code: Tensor) -> Tensor:
        hidden = self.trunk(torch.cat([condition, code], dim=1))
        made: Tensor = self.out(hidden[:, None] + self.position)
        return made

    def posterior(self, condition: Tensor, summary: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the code, both [B,Z]; summary [B,D]: the mean over the true tokens."""
        mean, log_variance = self.encoder(torch.cat([condition, summary], dim=1)).chunk(2, dim=1)
        return mean, log_variance.clamp(-8, 8)


def generate(
    config: GeneratorConfig, condition: Tensor, target: Tensor, mask: Tensor, query: Tensor, seed: int
) -> Tensor:
    """Tokens [n,T,D] for query [n,C], after training on pairs.

    condition: [m,C] global features; target: [m,T,D] tokens of the other modality; mask: bool [m,T] of those that
    count. seed: of weights, order and codes; torch's global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _, tokens, width = target.shape
        scale = Standard(condition), Standard(target[mask])
        x, y = scale[0].apply(condition), scale[1].apply(target)
        net = TokenGenerator(config, x.shape[1], tokens, width)
        _train(net, config, x, y, mask)
        net.eval()
        with torch.no_grad():
            code = torch.randn(len(query), net.code)
            asked = scale[0].apply(query)
            parts = [net(q, c) for q, c in zip(asked.split(256), code.split(256), strict=True)]
        return scale[1].undo(torch.cat(parts)) if len(query) else target[:0]


def _train(net: TokenGenerator, config: GeneratorConfig, x: Tensor, y: Tensor, mask: Tensor) -> None:
    optimizer = torch.optim.Adam(net.parameters(), lr=config.learning_rate)
    weight = mask.float()[:, :, None]
    summary = (y * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
    for _ in range(config.epochs):
        for rows in torch.randperm(len(x)).split(config.batch_size):
            mean, log_variance = net.posterior(x[rows], summary[rows])
            code = mean + torch.randn_like(mean) * (log_variance / 2).exp()
            error = ((net(x[rows], code) - y[rows]).square() * weight[rows]).sum() / weight[rows].sum().clamp(min=1)
            divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1).mean()
            optimizer.zero_grad(set_to_none=True)
            (error / y.shape[2] + config.kl * divergence).backward()
            optimizer.step()


class Standard:
    """Mean 0 and deviation 1 by feature, from x [m,D]."""

    def __init__(self, x: Tensor) -> None:
        self.mean = x.mean(dim=0)
        self.deviation = x.std(dim=0, unbiased=False).clamp(min=1e-6)

    def apply(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation

    def undo(self, x: Tensor) -> Tensor:
        return x * self.deviation + self.mean
