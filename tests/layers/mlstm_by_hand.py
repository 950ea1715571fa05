"""The unstabilized recurrence of the mLSTM, as published."""

import math

import torch


def silu(x):
    return x * x.sigmoid()


def bias_of(part):
    return 0 if part.bias is None else part.bias


def mix_by_hand(layer, u, z, convolved):
    """What a layer makes of u, z and the convolution of u, (L, inner), head by head."""
    c = silu(convolved)
    q, k, v = (
        x @ torch.block_diag(*proj.weight).T + bias_of(proj)
        for proj, x in ((layer.q_proj, c), (layer.k_proj, c), (layer.v_proj, u))
    )
    input_logits, forget_logits = layer.gate_proj(torch.cat([q, k, v], -1)).chunk(2, -1)
    heads = []
    for h, (q_h, k_h, v_h) in enumerate(zip(*(p.chunk(2, -1) for p in (q, k, v)), strict=True)):
        width, outs = q_h.shape[1], []
        memory, normalizer = u.new_zeros(width, width), u.new_zeros(width)
        for t in range(len(u)):
            forget, write = forget_logits[t, h].sigmoid(), input_logits[t, h].exp()
            key = k_h[t] / math.sqrt(width)
            memory = forget * memory + write * torch.outer(key, v_h[t])
            normalizer = forget * normalizer + write * key
            outs.append(memory.T @ q_h[t] / (normalizer @ q_h[t]).abs().clamp(min=1))
        out = torch.stack(outs)
        heads.append(
            (out - out.mean(-1, keepdim=True))
            / (out.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        )
    y = torch.cat(heads, -1) * layer.norm.weight + bias_of(layer.norm) + layer.skip * c
    return layer.down_proj(y * silu(z))
