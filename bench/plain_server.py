"""Does a server of ours answer as any other would, while a prompt fits into the model's window?

Prompts of very different lengths, each a chat of its own: a passage of a text with a task in front of it, behind it, or
on both sides. A server with default settings answers them greedily; transformers' ``generate`` continues the same token
ids with the same weights, read from the same file. Both replies of a prompt should be the same text. Where they are
not, the first token that differs is looked at: how far apart its two candidates are by transformers' logits (float32
sums in another order decide between those that are nearly equal), and whether any of the prompt was hidden.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.common import report
from bench.serving import served
from mc_core.bundle.bundle import Bundle, load_bundle
from mc_core.models.decoder_config import RopeScaling
from server.fetch import SMOLLM2, fetch, model_cache
from server.templates.chat_template import ChatTemplate
from server.templates.messages import Message

TASKS = (
    "Who is speaking here, and of what?",
    "Summarize the text in two sentences.",
    "Which places are named in the text?",
    "What happens first, and what happens last?",
    "Write a title for the text.",
)


def prompts(text: str, bundle: Bundle, lengths: list[int]) -> Iterator[str]:
    """A passage of each length in tokens, with its task in front, behind, or on both sides in turn."""
    ids = bundle.tokenizer.encode(text)
    rng = np.random.default_rng(0)
    for number, length in enumerate(lengths):
        start = int(rng.integers(0, len(ids) - length))
        passage = bundle.tokenizer.decode(ids[start : start + length]).strip("\ufffd")
        task = TASKS[number % len(TASKS)]
        parts = ([task, passage], [passage, task], [task, passage, task])[number % 3]
        yield "\n\n".join(parts)


def reference(bundle: Bundle) -> LlamaForCausalLM:
    """transformers' model with the tensors of ours."""
    config = bundle.decoder.config
    if config.family != "llama" or config.rope_scaling != RopeScaling():
        raise SystemExit(f"only for plain llama models, not {config.family}")
    shape = {
        name: getattr(config, name)
        for name in ("vocab_size", "hidden_size", "intermediate_size", "head_dim", "rms_norm_eps")
    }
    model = LlamaForCausalLM(
        LlamaConfig(
            **shape,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            max_position_embeddings=config.max_position_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=config.tie_word_embeddings,
            bos_token_id=None,
            eos_token_id=sorted(bundle.tokenizer.eos_ids),
            pad_token_id=min(bundle.tokenizer.eos_ids),
        )
    )
    ours = bundle.decoder.state_dict()
    named = {name if name.startswith("lm_head") else f"model.{name}": value for name, value in ours.items()}
    missing, unexpected = model.load_state_dict(named, strict=False)
    left = [name for name in missing if not name.startswith("lm_head")]
    if left or unexpected:
        raise SystemExit(f"the tensors do not fit: {left} are missing, {unexpected} too many")
    model.tie_weights()
    return model.eval()


@torch.inference_mode()
def continued(model: LlamaForCausalLM, ids: np.ndarray, reply: int) -> tuple[list[int], torch.Tensor]:
    """Greedy -> ids of the reply, logits [reply, vocabulary]."""
    given = torch.from_numpy(ids.astype(np.int64))[None]
    made = model.generate(
        given,
        attention_mask=torch.ones_like(given),
        max_new_tokens=reply,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return made.sequences[0, len(ids) :].tolist(), torch.cat(made.logits)


def answered(client: httpx.Client, model: str, prompt: str, reply: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": reply, "store": False}
    return client.post("/v1/chat/completions", json=body).raise_for_status().json()


def margin(logits: torch.Tensor, theirs: list[int], ours: list[int]) -> float:
    """How far transformers' logits put its own token above ours where the replies part."""
    at = next(i for i, pair in enumerate(zip([*theirs, -1], [*ours, -1], strict=False)) if pair[0] != pair[1])
    row = logits[min(at, len(logits) - 1)]
    return float(row.max() - row[ours[at]]) if at < len(ours) else float("nan")


def compare(
    client: httpx.Client, bundle: Bundle, model: LlamaForCausalLM, texts: list[str], reply: int
) -> Iterator[dict[str, Any]]:
    template = ChatTemplate(bundle.tokenizer, bundle.tokenizer.special_tokens)
    name = client.get("/v1/models").json()["data"][0]["id"]
    for text in texts:
        ids = template.ids([Message("user", text)], first=True, reply=True)
        theirs, logits = continued(model, ids, reply)
        kept = [token for token in theirs if token not in bundle.tokenizer.eos_ids]
        wanted = bundle.tokenizer.decode(kept)
        got = answered(client, name, text, reply)
        words, context = got["choices"][0]["message"]["content"], got["x_megacontext"]
        same = words == wanted
        yield {
            "tokens": len(ids),
            "asked tokens": got["usage"]["prompt_tokens"],
            "same": same,
            "hidden": context["hidden"],
            "margin": 0.0 if same else margin(logits, theirs, bundle.tokenizer.encode(words).tolist()),
        }
        if not same:
            print(f"--- {len(ids)} tokens\n{wanted!r}\n{words!r}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="prose of which the prompts are made")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--shortest", type=int, default=200, help="tokens of a passage")
    parser.add_argument("--longest", type=int, default=7_000)
    parser.add_argument("--reply", type=int, default=48)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("flags", nargs="*", help="of megacontext serve, behind --")
    options = parser.parse_args()

    bundle = load_bundle(fetch(SMOLLM2, model_cache(None)))
    lengths = np.linspace(options.shortest, options.longest - 80, options.prompts).round().astype(int)
    lengths = np.random.default_rng(0).permutation(lengths).tolist()
    texts = list(prompts(options.text.read_text("utf-8"), bundle, lengths))
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        served("--store", f"sqlite:///{folder}/s.sqlite", "--weights", "float32", *options.flags) as (client, _),
    ):
        budget = client.get("/v1/models").json()["data"][0]["x_megacontext"]["budget"]
        for row in compare(client, bundle, reference(bundle), texts, options.reply):
            rows.append(row)
            print(row, flush=True)
    same = sum(row["same"] for row in rows)
    hidden = sum(row["hidden"] > 0 for row in rows)
    report(
        "plain_server",
        rows,
        {"prompts": len(rows), "same": same, "hidden": hidden, "budget": budget, "reply": options.reply},
        options.save,
    )


if __name__ == "__main__":
    main()
