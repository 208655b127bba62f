import pytest
import torch

from diffvi import InvalidInputError
from diffvi.nn import Attribute, ConditionEncoder, Denoiser, DiT, ResidualMLP
from diffvi.nn._conditions import drop_conditions

ATTRIBUTES = [Attribute("cell_type", 3), Attribute("dose")]
NAN = float("nan")


@pytest.mark.parametrize("backbone", ["dit", "mlp"])
def test_output_is_zero_at_the_start_and_has_the_states_shape(backbone):
    net = Denoiser(7, ATTRIBUTES, backbone)
    out = net(torch.randn(4, 7), torch.rand(4), torch.tensor([[0.0, 0.3], [1, NAN], [NAN, NAN], [2, -1]]))
    assert out.shape == (4, 7)
    assert (out == 0).all()


def _perturbed(net):
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net


def test_tokens_of_a_dit_see_each_other():
    net = _perturbed(DiT(8, width=16, depth=1, patch_size=4))
    x = torch.randn(1, 8, requires_grad=True)
    net(x, torch.randn(1, 16))[0, 0].backward()
    assert (x.grad[0, 4:].abs() > 0).all()


@pytest.mark.parametrize("make", [DiT, ResidualMLP])
def test_rows_of_a_batch_do_not_see_each_other(make):
    net = _perturbed(make(5, width=16, depth=2)).eval()
    x, c = torch.randn(6, 5), torch.randn(6, 16)
    torch.testing.assert_close(net(x, c)[2:3], net(x[2:3], c[2:3]))


def test_a_missing_attribute_is_the_same_whatever_else_is_given_and_differs_from_every_category():
    encoder = ConditionEncoder(ATTRIBUTES, 8)
    null = encoder(torch.tensor([[NAN, NAN]]))
    for code in range(3):
        assert not torch.allclose(encoder(torch.tensor([[float(code), NAN]])), null)
    a = encoder(torch.tensor([[1.0, 0.5]])) - encoder(torch.tensor([[NAN, 0.5]]))
    b = encoder(torch.tensor([[1.0, NAN]])) - null
    torch.testing.assert_close(a, b)


def test_null_vectors_survive_appended_categories():
    encoder, longer = ConditionEncoder([Attribute("a", 3)], 8), ConditionEncoder([Attribute("a", 5)], 8)
    state = encoder.state_dict()
    padded = longer.state_dict()["embeddings.0.weight"].clone()
    padded[:3] = state["embeddings.0.weight"]
    longer.load_state_dict({**state, "embeddings.0.weight": padded})
    for code in (NAN, 0.0, 2.0):
        torch.testing.assert_close(longer(torch.tensor([[code]])), encoder(torch.tensor([[code]])))


def test_a_nan_code_gives_no_nan_gradient():
    encoder = ConditionEncoder(ATTRIBUTES, 8)
    encoder(torch.tensor([[NAN, NAN], [1.0, 2.0]])).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())


def test_conditions_are_dropped_cell_by_cell_at_the_stated_rates():
    codes = torch.zeros(200_000, 2)
    dropped = drop_conditions(codes, ATTRIBUTES, 0.1, torch.Generator().manual_seed(0)).isnan()
    both = dropped.all(1).double().mean()
    assert abs(dropped.double().mean() - (1 - 0.9 * 0.9)) < 0.005
    assert abs(both - (0.1 + 0.9 * 0.01)) < 0.005


def test_unknown_denoiser_is_named():
    with pytest.raises(InvalidInputError, match=r"`denoiser` must be one of 'dit', 'mlp'; got 'unet'"):
        Denoiser(3, (), "unet")


# ---------------------------------------------------------------- sets and vectors

MIXED = [Attribute("type", 3), Attribute("drugs", 4, size=6, n_features=2), Attribute("start", size=5, fixed=True)]


def code(members, weights, start=None):
    row = [NAN, *members, *[NAN] * (3 - len(members)), *weights, *[0.0] * (3 - len(weights))]
    return torch.tensor([[*row, *(start or [NAN] * 5)]])


def test_a_set_has_no_order_and_an_empty_one_is_not_the_unknown_one():
    encoder = ConditionEncoder(MIXED, 8)
    encoder.embeddings[1].features.normal_()
    a, b = encoder(code([0, 2], [1.0, 0.5])), encoder(code([2, 0], [0.5, 1.0]))
    torch.testing.assert_close(a, b)
    unknown = torch.full((1, 12), NAN)
    assert not torch.allclose(encoder(code([], [])), encoder(unknown))
    torch.testing.assert_close(encoder(code([1], [0.0])), encoder(code([], [])))


def test_a_member_that_was_never_trained_is_told_by_its_features():
    encoder = ConditionEncoder(MIXED, 8)
    encoder.embeddings[1].features.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]))
    torch.testing.assert_close(encoder(code([0], [1.0])), encoder(code([2], [1.0])))
    assert not torch.allclose(encoder(code([0], [1.0])), encoder(code([1], [1.0])))


def test_sets_and_vectors_are_dropped_whole_and_fixed_ones_never():
    codes = code([0, 2], [1.0, 0.5], [1.0] * 5).repeat(20_000, 1)
    codes[:, 0] = 1.0
    dropped = drop_conditions(codes, MIXED, 0.1, torch.Generator().manual_seed(0)).isnan()
    drugs = dropped[:, [1, 2, 4, 5, 6]]
    assert (drugs.all(1) == drugs.any(1)).all()
    assert abs(drugs.all(1).double().mean() - 0.19) < 0.01
    assert not dropped[:, 7:].any()


@pytest.mark.parametrize("backbone", ["dit", "mlp"])
def test_context_tokens_are_a_set_whose_absent_members_count_for_nothing(backbone):
    attributes = [Attribute("x"), Attribute("around", size=12, n_tokens=4)]
    net = _perturbed(Denoiser(5, attributes, backbone, width=16, depth=2))
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(3, 5, generator=generator), torch.full((3,), 0.4)
    tokens = torch.randn(3, 4, 3, generator=generator)
    tokens[:, 3] = float("nan")

    def output(tokens):
        return net(x, t, torch.cat([torch.zeros(3, 1), tokens.reshape(3, -1)], 1))

    whole = output(tokens)
    torch.testing.assert_close(whole, output(tokens[:, [2, 3, 0, 1]]))
    changed = tokens.clone()
    changed[:, 0] += 1
    assert (output(changed) - whole).abs().max() > 1e-3
    assert output(torch.full_like(tokens, float("nan"))).isfinite().all()
