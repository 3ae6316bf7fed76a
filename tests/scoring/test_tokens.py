import pytest
import torch
from torch import nn

from ns_data import NSScorer, group_softmax
from ns_data.scoring.tokens import JoinTokens

GENERATOR = torch.Generator().manual_seed(0)


def by_hand(texts, length, fit, start, separator, pad):
    """A plain reference, token by token."""
    budget = length - len(start) - len(texts) * len(separator)
    joined, left = list(start), budget
    for text in texts:
        size = min(len(text), budget // len(texts) if fit == "share" else left)
        left -= size
        joined += [*text[:size], *separator]
    return joined + [pad] * (length - len(joined)), len(joined)


def padded(texts, pad=0):
    width = max(len(text) for text in texts)
    return torch.tensor([text + [pad] * (width - len(text)) for text in texts])


@pytest.mark.parametrize("fit", ["share", "tail"])
@pytest.mark.parametrize(("start", "separator"), [((), ()), ((101,), (102,)), ((0, 0), (0, 0))])
@pytest.mark.parametrize("length", [15, 24, 60])
def test_joins_as_a_loop_over_tokens_does(fit, start, separator, length):
    sizes = torch.randint(0, 20, (9,), generator=GENERATOR).tolist()
    texts = [torch.randint(1, 90, (size,), generator=GENERATOR).tolist() for size in sizes]
    groups = torch.tensor([[3, 0, 8, 1], [2, 7, 6, 4]])
    join = JoinTokens(length, fit=fit, start=start, separator=separator)
    expected = [by_hand([texts[i] for i in group], length, fit, start, separator, 0) for group in groups.tolist()]
    assert join(padded(texts), groups).tolist() == [tokens for tokens, _ in expected]
    mapped = join({"input_ids": padded(texts), "attention_mask": (padded(texts) > 0).long()}, groups)
    assert mapped["input_ids"].tolist() == [tokens for tokens, _ in expected]
    assert mapped["attention_mask"].sum(1).tolist() == [used for _, used in expected]


def test_special_tokens_that_the_texts_bring_are_taken_out_first():
    tokens = torch.tensor([[101, 5, 6, 102, 0], [101, 7, 102, 0, 0]])
    join = JoinTokens(start=(101,), separator=(102,))
    joined = join(
        {"input_ids": tokens, "token_type_ids": torch.ones(2, 5), "attention_mask": tokens > 0}, torch.tensor([[0, 1]])
    )
    assert joined["input_ids"].tolist() == [[101, 5, 102, 7, 102]]
    assert joined["token_type_ids"].tolist() == [[0] * 5]
    assert joined["attention_mask"].tolist() == [[1] * 5]
    assert join.report() == {"cut_texts": 1, "empty_texts": 0}
    assert join.report() == {"cut_texts": 0, "empty_texts": 0}


@pytest.mark.parametrize(
    ("length", "members", "share"), [(512, 4, 126), (256, 4, 62), (128, 4, 30), (512, 2, 254), (256, 2, 126), (128, 2, 62)]
)
def test_the_share_of_a_text_in_a_bert_like_model(length, members, share):
    join = JoinTokens(length, start=(101,), separator=(102,))
    assert join.budget(length, members) // members == share
    tokens = torch.arange(members)[:, None].expand(members, length) + 1
    joined = join(tokens, torch.arange(members)[None])[0]
    assert [int((joined == i + 1).sum()) for i in range(members)] == [share] * members


def test_the_first_text_crowds_the_others_out_with_tail_and_it_is_counted():
    tokens = torch.tensor([[1] * 10, [2] * 10, [3] * 10, [4] * 10])
    join = JoinTokens(12, fit="tail")
    assert join(tokens, torch.arange(4)[None]).tolist() == [[1] * 10 + [2] * 2]
    assert join.report() == {"cut_texts": 3, "empty_texts": 2}


class TextCNN(nn.Module):
    """Kim's: widths 3, 4, 5, maximum over time; the padding's embedding is zero."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 16, padding_idx=0)
        self.convolutions = nn.ModuleList(nn.Conv1d(16, 8, width) for width in (3, 4, 5))
        self.head = nn.Linear(24, 4)

    def forward(self, tokens):
        x = self.embedding(tokens).transpose(1, 2)
        return self.head(torch.cat([convolution(x).amax(2) for convolution in self.convolutions], 1))


def test_with_padded_seams_a_convolutional_net_does_not_see_the_order():
    torch.manual_seed(0)
    net = TextCNN()
    tokens = torch.randint(1, 50, (4, 12), generator=GENERATOR)
    groups, other = torch.tensor([[0, 1, 2, 3]]), torch.tensor([[2, 0, 3, 1]])
    seams = JoinTokens(4 * 12 + 5 * 4, start=(0,) * 4, separator=(0,) * 4)
    assert torch.equal(net(seams(tokens, groups)), net(seams(tokens, other)))
    assert not torch.equal(net(JoinTokens(48)(tokens, groups)), net(JoinTokens(48)(tokens, other)))


def test_the_scorer_scores_texts():
    torch.manual_seed(0)
    net = TextCNN()
    tokens, labels = torch.randint(1, 50, (8, 24), generator=GENERATOR), torch.randint(4, (8,), generator=GENERATOR)
    join = JoinTokens()
    scorer = NSScorer(net, layout="1x4", compose=join)
    with torch.no_grad():
        expected = group_softmax(net(join(tokens, torch.arange(8).view(2, 4))), labels.view(2, 4))
    assert torch.equal(scorer(tokens, labels), expected.reshape(-1))
    counts = scorer.report()
    assert counts["cut_texts"] == 16

    class Named(nn.Module):
        def forward(self, input_ids, attention_mask):
            assert attention_mask.all()
            return net(input_ids)

    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    assert torch.equal(NSScorer(Named(), layout="1x4", compose=join)(inputs, labels), expected.reshape(-1))


@pytest.mark.parametrize(
    ("options", "inputs", "message"),
    [
        ({"fit": "head"}, None, "fit must be 'share' or 'tail', got 'head'"),
        ({"length": 6, "separator": (9,)}, torch.ones(4, 3, dtype=torch.long), "length 6 has no token for each of 4 texts"),
        ({}, torch.ones(4, 3), "token ids of shape B L are needed, got torch.float32"),
        ({}, {"input_ids": torch.ones(4, 8, dtype=torch.long), "images": None}, "cannot join input 'images'"),
    ],
)
def test_bad_input_is_refused(options, inputs, message):
    with pytest.raises(ValueError, match=message):
        JoinTokens(**options)(inputs, torch.arange(4)[None])
