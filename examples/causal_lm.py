"""A causal language model with the interface of Hugging Face: `transformers.Trainer` trains it.

Its past_key_values are states of fixed size. Here it learns the docstring of its layer by heart.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from plstm.layers import PLSTM1d, PLSTM1dState


class CausalLMOutput(NamedTuple):
    loss: Tensor | None
    logits: Tensor
    past_key_values: list[PLSTM1dState]


class PLSTMForCausalLM(nn.Module):
    def __init__(self, vocab_size: int, dim: int = 64, depth: int = 2) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(vocab_size, dim), nn.Linear(dim, vocab_size)
        pairs = (nn.ModuleList([nn.LayerNorm(dim), PLSTM1d(dim, 4)]) for _ in range(depth))
        self.layers = nn.ModuleList(pairs)

    def forward(self, input_ids, labels=None, past_key_values=None) -> CausalLMOutput:
        """Logits (B, L, vocab_size) of input_ids (B, L), and the loss if there are labels."""
        x, states = self.embed(input_ids), list(past_key_values or [None] * len(self.layers))
        for i, (norm, layer) in enumerate(self.layers):
            y, states[i] = layer(norm(x), states[i], return_state=True)
            x = x + y
        logits = self.head(x)
        loss = None if labels is None else cross_entropy(logits[:, :-1].mT, labels[:, 1:])
        return CausalLMOutput(loss, logits, states)


def main(steps: int = 150) -> None:
    torch.manual_seed(0)
    net, text = PLSTMForCausalLM(vocab_size=256), torch.tensor(list(PLSTM1d.__doc__.encode()))
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    for _ in range(steps):
        batch = text[torch.randint(len(text) - 64, (8, 1)) + torch.arange(64)]
        loss = net(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"loss after {steps} steps: {loss:.2f} nats per character")
    tokens, states = torch.tensor([list(b"num_heads: ")]), None
    for _ in range(60):
        print(bytes(tokens[0].tolist()).decode(errors="replace"), end="")
        with torch.no_grad():
            _, logits, states = net(tokens, past_key_values=states)
        tokens = logits[:, -1:].argmax(-1)


if __name__ == "__main__":
    main()
