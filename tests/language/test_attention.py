"""Who sees whom in a packed row: the masks against a definition by brute force, and the kernels of a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask, flex_attention

from prefkit.language import LanguageScorer, Layout, Precision, attention, pack, varlen
from prefkit.language.attention import IMPLEMENTATION, LastLayer, _by_groups, _flex, _mask, block_mask, packed_attention
from tests.language.models import SHARED, build, words
from tests.language.test_scorer import some_groups

LAYOUT = Layout.of(torch.tensor([3, 2]), torch.tensor([2, 1]), torch.tensor([3, 2, 4]))
ROW = 12
"""Two groups in a row with one place of padding: 3 prompt tokens with responses of 2 and 1, 2 with one of 3."""
TOKENS = [*[("p", 0)] * 3, *[("a", 0)] * 2, ("b", 0), *[("p", 1)] * 2, *[("c", 1)] * 3]
POSITIONS = [0, 1, 2, 3, 4, 3, 0, 1, 2, 3, 4]


def by_definition(window: int | None) -> Tensor:
    """A token sees an earlier or equal position of its own prompt or its own response, within the window."""
    seen = torch.zeros(len(TOKENS), len(TOKENS), dtype=torch.bool)
    for q, (part, group) in enumerate(TOKENS):
        for k, (other, other_group) in enumerate(TOKENS):
            distance = POSITIONS[q] - POSITIONS[k]
            related = group == other_group and other in ("p", part)
            seen[q, k] = related and distance >= 0 and (window is None or distance < window)
    return seen


def test_positions_continue_the_prompt() -> None:
    assert LAYOUT.positions().tolist() == POSITIONS
    assert LAYOUT.predictors().tolist() == [2, 3, 4, 2, 5, 7, 8, 9, 10]


@pytest.mark.parametrize("window", [None, 1, 2, 3, 4])
def test_masks_of_groups(window: int | None) -> None:
    expected = by_definition(window)
    device = torch.device("cpu")
    assert torch.equal(_mask(3, (2, 1), window, 3, device), expected[3:6, :6])
    assert torch.equal(_mask(3, (2, 1), window, 2, device), expected[2:6, :6])
    assert torch.equal(_mask(3, (), window, 0, device), expected[:3, :3])
    assert torch.equal(_mask(2, (3,), window, 2, device), expected[8:, 6:])


@pytest.mark.parametrize("window", [None, 1, 3])
def test_block_mask_of_a_row(window: int | None) -> None:
    blocks = block_mask(LAYOUT, ROW, ROW, window, torch.device("cpu"))
    dense = create_mask(blocks.mask_mod, 1, 1, ROW, ROW, device="cpu")[0, 0]
    assert torch.equal(dense[:11, :11], by_definition(window))
    assert not dense[:11, 11:].any()
    assert dense[11, 11]


@pytest.mark.parametrize("window", [None, 1, 3, 6])
@pytest.mark.parametrize("read_only", [False, True])
def test_blocks_hold_every_pair_that_is_seen(
    window: int | None, read_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No block is left out that has a pair, and none is taken as whole that lacks one; whole ones do occur."""
    monkeypatch.setattr(attention, "_BLOCK", 4)
    generator = torch.Generator().manual_seed(0)
    left_out = whole = 0
    for _ in range(20):
        sizes = torch.randint(1, 4, (3,), generator=generator)
        lengths = [torch.randint(1, 12, (count,), generator=generator) for count in (3, int(sizes.sum()))]
        layout = Layout.of(lengths[0], sizes, lengths[1])
        row = layout.spans[-1].end + 5
        queries = len(layout.read()) + 3 if read_only else row
        blocks = block_mask(layout, queries, row, window, torch.device("cpu"), read_only=read_only)
        dense = create_mask(blocks.mask_mod, 1, 1, queries, row, device="cpu")[0, 0]
        for q in range(0, queries, 4):
            partial, full = (
                indices[0, 0, q // 4, : count[0, 0, q // 4]].tolist()
                for count, indices in (
                    (blocks.kv_num_blocks, blocks.kv_indices),
                    (blocks.full_kv_num_blocks, blocks.full_kv_indices),
                )
            )
            for k in range(0, row, 4):
                pairs = dense[q : q + 4, k : k + 4]
                assert not pairs.any() or k // 4 in partial + full
                assert pairs.all() or k // 4 not in full
                left_out += k // 4 not in partial + full
                whole += k // 4 in full
    assert left_out > 100
    assert whole > 10 or window in (1, 3)


@pytest.mark.parametrize("lengths", [(5, 3), (150, 130)], ids=["together", "one by one"])
def test_long_and_short_responses_take_different_kernels_with_one_result(lengths: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    layout = Layout.of(torch.tensor([7]), torch.tensor([2]), torch.tensor([length + 1 for length in lengths]))
    row = 7 + sum(lengths)
    query, key, value = (torch.randn(1, 2, row, 16, generator=generator) for _ in range(3))
    module = torch.nn.Module()
    mixed, _ = packed_attention(module, query, key, value, None, layout=layout, scaling=0.3)
    seen = torch.zeros(row, row, dtype=torch.bool)
    seen[:7, :7] = torch.ones(7, 7).tril().bool()
    seen[7:] = _mask(7, lengths, None, 7, torch.device("cpu"))
    scores = (query @ key.transpose(2, 3) * 0.3).masked_fill(~seen, float("-inf"))
    torch.testing.assert_close(mixed, (scores.softmax(-1) @ value).transpose(1, 2), rtol=1e-4, atol=1e-5)


def each_sequence(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    q_starts: Tensor,
    k_starts: Tensor,
    longest_q: int,
    longest_k: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
) -> Tensor:
    """What the kernel for sequences of different lengths computes, one sequence after the other."""
    mixed = []
    for number in range(len(q_starts) - 1):
        (q,), (k, v) = (
            [tensor[starts[number] : starts[number + 1]].transpose(0, 1) for tensor in tensors]
            for starts, tensors in ((q_starts, (query,)), (k_starts, (key, value)))
        )
        asking, asked = q.shape[1], k.shape[1]
        assert (asking, asked) <= (longest_q, longest_k)
        distance = (torch.arange(asking) + asked - asking)[:, None] - torch.arange(asked)
        seen = (distance >= 0) if window_size[0] < 0 else (distance >= 0) & (distance <= window_size[0])
        k, v = (tensor.repeat_interleave(q.shape[0] // k.shape[0], dim=0) for tensor in (k, v))
        weights = (q @ k.transpose(1, 2) * (scale or q.shape[2] ** -0.5)).masked_fill(~seen, float("-inf")).softmax(-1)
        mixed.append((weights @ v).transpose(0, 1))
    return torch.cat(mixed)


@pytest.mark.parametrize("window", [None, 3])
def test_sequences_of_one_kernel_give_the_same_numbers_and_gradients(window: int | None) -> None:
    """Layouts of every shape: one to three groups, one to three responses, some of one token, with padding."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        sizes = torch.randint(1, 4, (3,), generator=generator)
        lengths = [torch.randint(1, 6, (count,), generator=generator) for count in (3, int(sizes.sum()))]
        layout = Layout.of(lengths[0], sizes, lengths[1])
        row = layout.spans[-1].end + 2
        tensors = [torch.randn(1, heads, row, 8, generator=generator, dtype=torch.float64) for heads in (4, 2, 2)]
        noise = torch.randn(1, 4, row, 8, generator=generator, dtype=torch.float64)
        noise[:, :, -2:] = 0  # nobody reads the padding
        found = []
        for path in ("groups", "varlen"):
            leaves = [tensor.clone().requires_grad_() for tensor in tensors]
            if path == "groups":
                k, v = (leaf.repeat_interleave(2, dim=1) for leaf in leaves[1:])
                mixed = _by_groups(leaves[0], k, v, layout, None, 0.0, 0.3, window)
            else:
                how = {"read_only": False, "scaling": 0.3, "window": window}
                mixed = varlen.attend(*leaves, layout, **how, kernel=each_sequence)
            grads = torch.autograd.grad((mixed * noise).sum(), leaves)
            found.append([mixed[:, :, :-2], *grads])
        torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("path", ["groups", "flex", "varlen"])
def test_tokens_that_are_read_see_the_same_alone(window: int | None, path: str) -> None:
    """The last layer: queries of what is read only, keys of the others given apart."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, ROW, 16, generator=generator) for _ in range(3))
    key, value = key[:, :1], value[:, :1]
    read, unread = LAYOUT.read().tolist(), LAYOUT.unread().tolist()
    assert sorted(read + unread) == list(range(len(TOKENS)))
    last = LastLayer(LAYOUT, ROW, key[:, :, unread], value[:, :, unread])
    padded = [*read, ROW - 1, ROW - 1]

    def mixed(where: Layout | LastLayer, places: list[int]) -> Tensor:
        tensors = (query[:, :, places], key[:, :, places], value[:, :, places])
        if path == "flex":
            found = where if isinstance(where, LastLayer) else None
            return _flex(*tensors, LAYOUT, found, 0.3, window, flex_attention).transpose(1, 2)
        if path == "varlen":
            q, k, v = tensors
            if isinstance(where, LastLayer):
                k, v = torch.cat([where.key, k], dim=2), torch.cat([where.value, v], dim=2)
            how = {"read_only": where is last, "scaling": 0.3, "window": window}
            return varlen.attend(q, k, v, LAYOUT, **how, kernel=each_sequence).transpose(1, 2)
        return packed_attention(torch.nn.Module(), *tensors, None, layout=where, scaling=0.3, sliding_window=window)[0]

    whole, alone = mixed(LAYOUT, list(range(ROW))), mixed(last, padded)
    torch.testing.assert_close(alone[:, : len(read)], whole[:, read])


def test_implementation_is_known_to_transformers() -> None:
    scorer = LanguageScorer(build("llama"), words())
    assert scorer.config._attn_implementation == IMPLEMENTATION


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("style", ["llama", "qwen3", "gpt2", "gemma3", "mistral"])
def test_the_gpu_gives_the_same_numbers(style: str, precision: Precision) -> None:
    assert style in SHARED
    inputs = pack(some_groups())
    slow = LanguageScorer(build(style), words())
    fast = LanguageScorer(build(style).cuda(), words(), precision=precision)
    expected, measured = slow(inputs), fast({name: tensor.cuda() for name, tensor in inputs.items()})
    if precision == "bf16":
        # Half precision rounds too much to compare numbers one by one: directions are compared.
        torch.testing.assert_close(measured.policy_logps.cpu(), expected.policy_logps, rtol=2e-2, atol=0.5)
        expected.policy_logps.sum().backward()
        measured.policy_logps.sum().backward()
        grads = [
            torch.cat([weight.grad.cpu().flatten() for weight in model.parameters() if weight.grad is not None])
            for model in (slow, fast)
        ]
        assert torch.cosine_similarity(*grads, dim=0) > 0.99
        return
    torch.testing.assert_close(measured.policy_logps.cpu(), expected.policy_logps, rtol=1e-3, atol=1e-2)
    expected.policy_logps.sum().backward()
    measured.policy_logps.sum().backward()
    for (name, ours), theirs in zip(fast.named_parameters(), slow.parameters(), strict=True):
        if theirs.grad is not None:
            assert ours.grad is not None, name
            torch.testing.assert_close(ours.grad.cpu(), theirs.grad, rtol=1e-2, atol=1e-2)
