"""TextCNN: what padding between joined texts guarantees, and texts of any length."""

import itertools

import torch
import torch.nn.functional as F

from ns_data import create_model


def network(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return create_model("textcnn", 3, vocab_size=40, dim=8, filters=6, **options).eval()


def test_padded_seams_make_the_logits_free_of_the_order_of_texts():
    model = network()
    texts = [torch.randint(1, 40, (length,), generator=torch.Generator().manual_seed(length)) for length in (3, 7, 5)]
    pad = torch.zeros(4, dtype=torch.long)

    def join(order, seam):
        return torch.cat([seam, *itertools.chain.from_iterable((texts[i], seam) for i in order)])[None]

    with torch.no_grad():
        padded = [model(join(order, pad)) for order in itertools.permutations(range(3))]
        bare = [model(join(order, pad[:0])) for order in itertools.permutations(range(3))]
    assert all(torch.equal(padded[0], logits) for logits in padded)
    assert not all(torch.equal(bare[0], logits) for logits in bare)


def test_logits_are_the_convolutions_maxima_through_the_head():
    model, tokens = network(), torch.tensor([[5, 9, 2, 7, 7, 1]])
    words = model.embedding.weight[tokens[0]]
    features = []
    for convolution in model.convolutions:
        width = convolution.kernel_size[0]
        windows = torch.stack([words[t : t + width] for t in range(6 - width + 1)])  # (places, width, dim)
        values = torch.einsum("twd,fdw->tf", windows, convolution.weight) + convolution.bias
        features.append(values.clamp(min=0).amax(dim=0))
    torch.testing.assert_close(model(tokens)[0], model.head(torch.cat(features)))


def test_short_texts_are_filled_up_with_padding():
    model = network()
    tokens = torch.tensor([[5, 9]])
    assert torch.equal(model(tokens), model(F.pad(tokens, (0, 3))))


def test_the_padding_vector_is_zero_and_learns_nothing():
    model = network(pad_id=3)
    assert not model.embedding.weight[3].any()
    assert model.embedding.weight.abs().max() <= 0.25
    model(torch.tensor([[3, 3, 5, 9, 3, 3]])).sum().backward()
    assert not model.embedding.weight.grad[3].any()
    assert model.embedding.weight.grad[5].any()
