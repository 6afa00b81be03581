import torch
from torch import Tensor, nn

from fedhpc.models.unused import drop_unused


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(3, 3)
        self.idle = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.pair = nn.ModuleDict({"used": nn.Linear(3, 3), "idle": nn.Linear(3, 3)})
        self.lone = nn.Parameter(torch.ones(3))
        self.needed = nn.Parameter(torch.ones(3))
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.needed.detach().sum()  # read, but without a gradient
        return self.norm(self.pair["used"](self.used(x))) * scale


def test_removes_what_the_output_does_not_depend_on_and_freezes_what_it_cannot_remove() -> None:
    torch.manual_seed(0)
    net = Net()
    x = torch.randn(4, 3)
    state = torch.get_rng_state()
    expected = net.eval()(x)
    net.train()
    removed = drop_unused(net, lambda: net(x))
    assert set(removed) == {"idle", "pair.idle", "lone"}
    assert not net.needed.requires_grad
    trainable = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert trainable == {
        *("used.weight", "used.bias", "pair.used.weight", "pair.used.bias", "norm.weight", "norm.bias"),
    }
    assert all(parameter.grad is None for parameter in net.parameters())
    assert net.training
    assert torch.equal(torch.get_rng_state(), state)
    assert int(net.norm.num_batches_tracked) == 0
    assert torch.equal(net.eval()(x), expected)
