"""Words against regions of pictures (GLoRIA, Huang et al. 2021; released code marshuang80/gloria, gloria_loss.py).

    a_ijk   = softmax over regions k of temp1 * (softmax over words j of w_j . r_k)     for one picture, one text
    c_j     = sum_k a_jk r_k                                        what word j looks at
    s       = log sum_j exp(temp2 * cos(c_j, w_j))                  picture and text
    L_local = CE(s / T, I) + CE((s / T)^T, I)                       over the batch, as the global part

Theirs are words, the first being [CLS], summed from pieces; ours are the tokenizer's pieces behind the global token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

TEXTS_AT_ONCE = 8
LOW = -1e9  # a logit that never counts; infinity would make a text without words nan
IGNORED = -1


def local_similarity(regions: Tensor, words: Tensor, mask: Tensor, attention_scale: float, word_scale: float) -> Tensor:
    """How well the words of every text find themselves in every picture: [I,T]; about LOW for texts without words.

    regions: [I,R,E]. words: [T,L,E]. mask: bool [T,L], True where there is a word. attention_scale, word_scale: temp1
    and temp2. Takes a few times [I,8,R,L] numbers of memory, not [I,T,R,L]: attention is computed for 8 texts at once,
    and again in the backward pass.
    """
    columns = [
        checkpoint(_columns, regions, w, m, attention_scale, word_scale, use_reentrant=False, preserve_rng_state=False)
        for w, m in zip(words.split(TEXTS_AT_ONCE), mask.split(TEXTS_AT_ONCE), strict=True)
    ]
    return torch.cat(columns, dim=1)


def _columns(regions: Tensor, words: Tensor, mask: Tensor, attention_scale: float, word_scale: float) -> Tensor:
    dots = torch.einsum("ire,tle->itrl", regions, words).masked_fill(~mask[:, None, :], LOW)
    attention = (attention_scale * dots.softmax(dim=3)).softmax(dim=2)
    context = torch.einsum("itrl,ire->itle", attention, regions)
    found = word_scale * F.cosine_similarity(context, words, dim=3)
    return found.masked_fill(~mask, LOW).logsumexp(dim=2)


def local_contrastive_loss(similarity: Tensor, has_words: Tensor, temperature: Tensor | float) -> Tensor:
    """CE(s / T, I) + CE((s / T)^T, I), each a mean over the texts that have words; 0 when none has; a scalar.

    similarity: [B,B], pictures by texts, from `local_similarity`. has_words: bool [B]. A text without words looks for
    no picture, and LOW keeps it from being found by one; its own picture stays a candidate for the other texts.
    """
    logits = similarity / temperature
    pairs = torch.arange(len(has_words), device=has_words.device).masked_fill(~has_words, IGNORED)
    forth = F.cross_entropy(logits, pairs, ignore_index=IGNORED, reduction="sum")
    back = F.cross_entropy(logits.T, pairs, ignore_index=IGNORED, reduction="sum")
    return (forth + back) / has_words.sum().clamp(min=1)
