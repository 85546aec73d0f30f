"""Protects VAE, BiGAN, diffusion and the Boltzmann machine: formulas against loops and enumeration, and who moves by what."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_encoders import TinyEncoder, views

from sslt.data.prepare.image_processor import ImageProcessor
from sslt.encoders.rbm import RBMEncoder
from sslt.encoders.unet import UNetEncoder, signal_shares
from sslt.errors import UserError
from sslt.objectives.bigan import BiGAN
from sslt.objectives.diffusion import Diffusion
from sslt.objectives.rbm import RBM
from sslt.objectives.vae import VAE, kl_to_standard_normal


# -------------------------------------------------------------------- VAE
def test_kl_is_that_of_torchs_distributions():
    """Against torch.distributions; none at the prior itself."""
    mean, log_variance = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(torch.zeros(()).double(), 1.0)).sum(1)
    assert torch.allclose(kl_to_standard_normal(mean, log_variance), expected)
    assert kl_to_standard_normal(torch.zeros(2, 3), torch.zeros(2, 3)).tolist() == [0, 0]


def test_vae_against_the_loop():
    """½|x - x̂|² + β·KL over the number of pixels, with the code drawn by the reparametrisation."""
    encoder, batch = TinyEncoder(), views()
    objective = VAE(encoder, 5, 3.0, 4)
    torch.nn.init.normal_(objective.log_variance.weight, std=0.3)
    torch.manual_seed(3)
    found = objective(encoder, dict(batch))
    torch.manual_seed(3)
    with torch.no_grad():
        pooled = encoder({"image": batch["views"]["image"][0]}).pooled
        mean, log_variance = objective.mean(pooled), objective.log_variance(pooled)
        drawn = objective.decoder(mean + (log_variance / 2).exp() * torch.randn_like(mean)).double().numpy()
    x, losses = batch["views"]["image"][0].double().numpy(), []
    for i in range(len(x)):
        m, s = mean[i].double().numpy(), log_variance[i].double().numpy()
        kl = sum(0.5 * (m[j] ** 2 + np.exp(s[j]) - 1 - s[j]) for j in range(5))
        losses.append((0.5 * ((drawn[i] - x[i]) ** 2).sum() + 3.0 * kl) / x[i].size)
    assert float(found.value) == pytest.approx(np.mean(losses), rel=1e-4)


# -------------------------------------------------------------------- BiGAN
def test_bigan_moves_each_side_by_its_own_loss():
    """Against two separate backward passes: the critic tells pairs apart, encoder and generator swap the labels."""
    encoder, batch = TinyEncoder(), views()
    objective = BiGAN(encoder, 5, 4).eval()  # fixed spectral norms
    encoder.eval()
    torch.manual_seed(3)
    found = objective(encoder, dict(batch))
    found.value.backward()
    got = {n: p.grad.clone() for n, p in [*encoder.named_parameters(), *objective.named_parameters()]}
    assert all(g.any() for g in got.values())

    def sides() -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of true and of drawn pairs."""
        torch.manual_seed(3)
        images = batch["views"]["image"][0]
        code = objective.code(encoder({"image": images}).pooled)
        given = torch.randn(len(images), 5)
        return objective.critic(images, code), objective.critic(objective.generator(given), given)

    one, zero = torch.ones(4), torch.zeros(4)
    total = 0.0
    for swapped in (False, True):
        encoder.zero_grad()
        objective.zero_grad()
        true, drawn = sides()
        loss = F.binary_cross_entropy_with_logits(true, zero if swapped else one)
        loss = loss + F.binary_cross_entropy_with_logits(drawn, one if swapped else zero)
        loss.backward()
        total += float(loss.detach())
        for name, p in [*encoder.named_parameters(), *objective.named_parameters()]:
            if name.startswith("critic.") != swapped:
                assert torch.allclose(got[name], p.grad, rtol=1e-3, atol=1e-7), name
    assert float(found.value) == pytest.approx(total, rel=1e-5)


def test_what_bigan_tells_moves_nothing():
    """How often numbers are told is no part of what a checkpoint holds."""
    found = []
    for told in (False, True):
        torch.manual_seed(0)
        encoder = TinyEncoder()
        objective = BiGAN(encoder, 5, 4)
        objective.logs_now = told
        torch.manual_seed(1)
        assert ("reconstruction" in objective(encoder, views()).logs) == told
        found.append({n: b.clone() for n, b in objective.named_buffers()})
    assert found[0].keys() == found[1].keys() and all(torch.equal(found[0][n], found[1][n]) for n in found[0])


def test_bigans_critic_has_weights_of_norm_one():
    """After some steps the largest singular value of each is about 1."""
    torch.manual_seed(0)
    encoder = TinyEncoder()
    objective = BiGAN(encoder, 5, 4)
    for _ in range(60):
        objective(encoder, views())
    for layer in objective.critic.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            assert float(torch.linalg.matrix_norm(layer.weight.flatten(1), 2)) == pytest.approx(1, abs=0.03)


# -------------------------------------------------------------------- diffusion
def unet(block: str = "mid", level: int = 20, size: int = 16) -> UNetEncoder:
    torch.manual_seed(0)
    return UNetEncoder(ImageProcessor(size, 3, [0.5] * 3, [0.25] * 3), [8, 16], 1, 100, level, block)


def test_noise_levels_are_those_of_the_paper():
    """ᾱ against the plain product, and against the scheduler of diffusers."""
    from diffusers import DDPMScheduler

    product, betas = 1.0, np.linspace(1e-4, 0.02, 1000)
    plain = [product := product * (1 - b) for b in betas]
    assert np.allclose(signal_shares(1000).double().numpy(), plain, rtol=1e-5)
    assert torch.allclose(signal_shares(1000), DDPMScheduler(1000).alphas_cumprod, rtol=1e-4)


def test_diffusion_against_the_loop():
    """Each image with a level and noise of its own; the mean square of what is predicted wrongly."""
    encoder, batch = unet(), views()
    objective = Diffusion(encoder, 5)
    torch.manual_seed(3)
    found = float(objective(encoder, dict(batch)).value.detach())
    torch.manual_seed(3)
    images = batch["views"]["image"][0]
    level, noise = torch.randint(100, (4,)), torch.randn_like(images)
    assert len(set(level.tolist())) > 1
    betas, errors = np.linspace(1e-4, 0.02, 100), []
    for i in range(4):
        share = np.prod(1 - betas[: int(level[i]) + 1])
        noisy = np.sqrt(share) * images[i].double().numpy() + np.sqrt(1 - share) * noise[i].double().numpy()
        with torch.no_grad():
            guess = encoder.model(torch.from_numpy(noisy).float()[None], level[i : i + 1]).sample[0]
        errors.append(((guess - noise[i]) ** 2).mean().item())
    assert found == pytest.approx(np.mean(errors), rel=1e-4)


def test_sampling_by_the_true_noise_finds_the_image():
    """With a predictor that knows the one image there is, DDIM ends at it; at the range of pixels if it goes beyond."""
    encoder = unet()
    objective = Diffusion(encoder, 20)
    truth = views(2)["views"]["image"][0].clamp(-2, 2)  # pixels of 0..1 with this mean and std

    def knows(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        share = encoder.shares[t].view(-1, 1, 1, 1)
        return (x - share.sqrt() * truth) / (1 - share).sqrt()

    encoder.predict_noise = knows
    assert torch.allclose(objective.sample(encoder, torch.randn_like(truth)), truth, atol=0.05)
    truth = 10 * truth
    assert torch.allclose(objective.sample(encoder, torch.randn_like(truth)), truth.clamp(-2, 2), atol=0.05)


# -------------------------------------------------------------------- Boltzmann machine
def machine(visible: str, size: int = 2, hidden: int = 3) -> RBMEncoder:
    torch.manual_seed(0)
    encoder = RBMEncoder(ImageProcessor(size, 1, [0.3], [0.4]), hidden, visible).double()
    for p in encoder.parameters():
        torch.nn.init.normal_(p)
    return encoder


@pytest.mark.parametrize("visible", ["binary", "gaussian"])
def test_free_energy_and_conditionals_by_enumeration(visible):
    """-log Σ_h exp(-E(v, h)) over all h; P(h|v) and E[v|h] from the energies alone."""
    encoder = machine(visible)
    w, c, b = (p.detach().numpy() for p in (encoder.layer.weight, encoder.layer.bias, encoder.visible_bias))
    states = [np.array(h, dtype=float) for h in itertools.product((0, 1), repeat=3)]

    def energy(v: np.ndarray, h: np.ndarray) -> float:
        own = -v @ b if visible == "binary" else 0.5 * ((v - b) ** 2).sum()
        return own - h @ c - h @ w @ v

    v = np.array([1.0, 0.0, 1.0, 1.0]) if visible == "binary" else np.array([0.3, -1.0, 0.4, 2.0])
    weights = np.array([np.exp(-energy(v, h)) for h in states])
    rows = torch.from_numpy(v)[None]
    assert encoder.free_energy(rows).item() == pytest.approx(-np.log(weights.sum()))
    assert np.allclose(encoder.hidden_probability(rows)[0].detach().numpy(), (weights[:, None] * states).sum(0) / weights.sum())
    h = states[5]
    if visible == "binary":
        all_v = [np.array(x, dtype=float) for x in itertools.product((0, 1), repeat=4)]
        weights = np.array([np.exp(-energy(x, h)) for x in all_v])
        expected = (weights[:, None] * all_v).sum(0) / weights.sum()
    else:
        expected = b + h @ w  # the minimum of a quadratic energy
    assert np.allclose(encoder.visible_mean(torch.from_numpy(h)[None])[0].detach().numpy(), expected)


def test_the_gradient_is_the_rule_of_contrastive_divergence():
    """d/dW is minus ⟨h vᵀ⟩ of the data plus ⟨h vᵀ⟩ of where the chain ended, and likewise for the biases."""
    encoder = machine("binary")
    objective = RBM(encoder, 2, False)
    batch = views(6, size=4, channels=1)
    batch = {"views": {"image": batch["views"]["image"][..., :2, :2].double()}}
    torch.manual_seed(5)
    objective(encoder, dict(batch)).value.backward()
    v = encoder.visible(batch["views"]["image"][0]).numpy()
    torch.manual_seed(5)
    end = encoder.gibbs(torch.from_numpy(v), 2).numpy()
    assert set(np.unique(end)) <= {0.0, 1.0}
    p, q = (encoder.hidden_probability(torch.from_numpy(x)).detach().numpy() for x in (v, end))
    assert np.allclose(4 * encoder.layer.weight.grad.numpy(), (q.T @ end - p.T @ v) / 6)
    assert np.allclose(4 * encoder.visible_bias.grad.numpy(), (end - v).mean(0))
    assert np.allclose(4 * encoder.layer.bias.grad.numpy(), (q - p).mean(0))


def test_long_chains_reach_the_models_distribution():
    """Frequencies of visible states after 200 rounds are those of exp(-F(v))."""
    encoder = machine("binary")
    states = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4)), dtype=torch.float64)
    expected = torch.softmax(-encoder.free_energy(states), 0).detach()
    torch.manual_seed(0)
    end = encoder.gibbs(torch.zeros(20000, 4, dtype=torch.float64), 200)
    index = (end * torch.tensor([8.0, 4.0, 2.0, 1.0])).sum(1).long()
    assert torch.allclose(torch.bincount(index, minlength=16).double() / 20000, expected, atol=0.02)


def test_persistent_chains_go_on_where_they_were():
    """A step starts at the end of the one before, whatever the data; one that is not persistent starts at the data."""
    encoder = machine("gaussian")
    objective = RBM(encoder, 1, True)
    objective.prepare(encoder, None, 6)  # type: ignore[arg-type]
    objective.double()
    batch = {"views": {"image": torch.randn(1, 6, 1, 2, 2, dtype=torch.float64)}}
    first = objective.chains.clone()
    torch.manual_seed(1)
    objective(encoder, dict(batch))
    torch.manual_seed(1)
    assert torch.equal(objective.chains, encoder.gibbs(first, 1))
    kept = objective.chains.clone()
    objective.eval()(encoder, dict(batch))
    assert torch.equal(objective.chains, kept)
    assert torch.equal(RBM(encoder, 1, False).starts(first + 1), first + 1)


# -------------------------------------------------------------------- mistakes, pictures
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VAE(TinyEncoder(), 5, -1.0, 4), r"objective\.beta"),
        (lambda: Diffusion(TinyEncoder(), 5), "encoder=unet_small"),
        (lambda: Diffusion(unet(), 1000), "1 to 100"),
        (lambda: RBM(TinyEncoder(), 1, False), "encoder=rbm"),
        (lambda: RBM(machine("binary"), 0, False), r"objective\.k"),
        (lambda: machine("binry"), "did you mean 'binary'"),
        (lambda: unet("middle"), "did you mean 'mid'|there are down.0"),
        (lambda: unet(level=100), "0 to 99"),
        (lambda: unet(size=15), r"encoder\.processor\.size"),
    ],
)
def test_values_that_cannot_be(make, message):
    """One line for each."""
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("task", ["vae", "bigan", "diffusion", "rbm"])
def test_they_draw(task, sslt, here):
    """Reconstructions and samples (of the machine, its filters) lie in the run folder."""
    from tiny_tasks import tiny

    args = [*tiny(task), "batch_size=32", "trainer.max_steps=2", "online_probe.every_n_epochs=0", "hydra.run.dir=out"]
    sslt("pretrain", f"+task={task}", *args)
    second = "rbm_filters" if task == "rbm" else f"{task}_samples"
    assert sorted(p.stem for p in (here / "out" / "pictures").glob("*.png")) == sorted([task, second])
